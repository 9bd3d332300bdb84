// Keys, and links that exchange parts of the page: the table keeps its place. Without this script
// every link and form works as a plain page.
"use strict";

const PARTS = ["filters", "rows", "detail"];
const STOPS = "a[href], button, input, select, summary, [tabindex]";
let loading = null;
let at = location.pathname + location.search;

// What finds the element with the focus again after its part of the page was exchanged: the table
// after a search, else the same field, the link to the same neighbour, or what has its place.
function focused() {
  const one = document.activeElement;
  const part = one.closest("#filters, #rows, #detail, .top");
  if (!part) return null;
  const inside = (query) => document.querySelector(part.id ? "#" + part.id : ".top").querySelectorAll(query);
  if (one.matches("input")) return () => document.querySelector(".table");
  if (one.name) return () => inside(`[name="${CSS.escape(one.name)}"]`)[0];
  if (one.rel) return () => inside(`a[rel="${one.rel}"]`)[0];
  const place = [...inside(STOPS)].indexOf(one);
  return () => inside(STOPS)[place];
}

async function show(url, push) {
  if (loading) loading.abort();
  loading = new AbortController();
  let text, address;
  try {
    const answer = await fetch(url, { signal: loading.signal });
    if (!answer.ok) throw new Error(String(answer.status));
    text = await answer.text();
    address = answer.url;
  } catch (error) {
    if (error.name !== "AbortError") location.assign(url);
    return;
  }
  const page = new DOMParser().parseFromString(text, "text/html");
  if (PARTS.some((id) => !page.getElementById(id))) return location.assign(url);
  const table = document.querySelector(".table");
  const old = document.getElementById("rows").dataset.order;
  const place = table ? table.scrollTop : 0;
  const again = focused();
  if (push) history.pushState(null, "", address);
  at = location.pathname + location.search;
  for (const id of PARTS) document.getElementById(id).replaceWith(document.adoptNode(page.getElementById(id)));
  document.querySelector(".top").replaceWith(document.adoptNode(page.querySelector(".top")));
  document.querySelector("main").className = page.querySelector("main").className;
  document.title = page.title;
  const fresh = document.querySelector(".table");
  if (document.getElementById("rows").dataset.order === old) fresh.scrollTop = place;
  const now = document.querySelector("tr.now");
  if (now) now.scrollIntoView({ block: "nearest" });
  document.getElementById("detail").scrollTop = 0;
  if (again) {
    const several = [again(), document.getElementById("detail"), fresh]; // a phone hides some
    for (const one of several) {
      if (one) one.focus({ preventScroll: true });
      if (one && document.activeElement === one) break;
    }
  }
  if (matchMedia("(max-width: 900px)").matches) scrollTo(0, 0);
}

function isPlain(event) {
  return event.button === 0 && !event.metaKey && !event.ctrlKey && !event.shiftKey && !event.altKey;
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href]");
  if (!link || !isPlain(event) || link.origin !== location.origin) return;
  if (!link.closest(".top nav, #rows, #detail, #filters") || link.pathname.startsWith("/image/")) return;
  event.preventDefault();
  show(link.href, true);
});

document.addEventListener("submit", (event) => {
  const query = new URLSearchParams(new FormData(event.target));
  for (const [name, value] of [...query]) if (!value) query.delete(name);
  event.preventDefault();
  show(event.target.action + (String(query) ? "?" + query : ""), true);
});

document.addEventListener("change", (event) => {
  if (event.target.matches("#filters select")) event.target.form.requestSubmit();
});

addEventListener("popstate", () => {
  if (location.pathname + location.search !== at) show(location.href, false); // not for "#detail"
});

document.addEventListener("keydown", (event) => {
  const field = event.target.matches("input, select, textarea");
  if (event.metaKey || event.ctrlKey || event.altKey) return;
  if (event.key === "Escape" && field) return event.target.blur();
  if (field) return;
  if (event.key === "/") {
    event.preventDefault();
    return document.querySelector("input[name=q]").focus();
  }
  const to = { ArrowRight: "next", j: "next", ArrowLeft: "prev", k: "prev" }[event.key];
  const link = to && document.querySelector(`#detail a[rel=${to}]`);
  if (link) {
    event.preventDefault();
    show(link.href, true);
  }
});

// An image that cannot be read: its address says why.
document.addEventListener("error", async (event) => {
  const image = event.target;
  if (image.tagName !== "IMG" || !image.closest(".picture, .more")) return;
  const why = document.createElement("p");
  why.className = "lost";
  why.textContent = await (await fetch(image.src)).text();
  image.closest(".picture, .more").append(why);
}, true);
