"""Boxes, outlines and points drawn on an image, for pages and for files.

marks     what is drawn, and how each kind looks
tags      where their labels stand
overlay   as SVG that lies over an image on a page, and the image itself inside the page
raster    as a picture with the marks in its pixels
"""
