"""General benchmarks, measured by other harnesses: lmms-eval and VLMEvalKit.

The harnesses ask and score; the modules here read their finished logs, add intervals where the logs
hold the score of each question, and pair the questions of two models. `run_lmms_eval` starts
lmms-eval. Nothing in a log is executed or unpickled.
"""
