"""Answer prompts with vLLM's engine in this process, from the tokens and pixels of training.

The prompt is passed as token ids and the image as training prepares it; vLLM uses the PIL image
processor, as training does. vLLM inserts the image's placeholders itself. Its ids are compared with
training's before the first prompt is sampled, and their number for every prompt.

Completions are drawn from softmax(logits / T) over all tokens except image placeholders, or
greedily (the likeliest of these at every step), and end at the model's end tokens. vLLM takes
nothing from generation_config.json, and every parameter that has a default in vLLM is set here.
Each prompt has its own seed.

The engine runs in this process, gets requests at fixed points and starts each call with empty
caches. Its batches therefore depend only on the rows of the call, so the same rows give the same
completions. Ahead of the engine, threads open and decode images and one thread processes them.
"""

import copy
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perpo_pipeline.inference.backend import BackendSetup, Failure, OnDone, Row, SampledList, Size
from perpo_pipeline.inference.prompt_tokens import (
    answer_too_long,
    compare_prompt_tokens,
    prompt_too_long,
)
from perpo_pipeline.inference.vllm_engine import (
    check_layers,
    check_settings,
    exact_lora_rank,
    import_vllm,
    limited_model,
    start_engine,
)
from perpo_pipeline.store.artifacts import MERGED
from perpo_pipeline.store.places import name_prompt
from perpo_pipeline.store.prompt_images import box_place, images_of, num_images
from perpo_pipeline.vlm.chat import check_thinking
from perpo_pipeline.vlm.chat_rendering import idle_notes
from perpo_pipeline.vlm.completion import Completion
from perpo_pipeline.vlm.image_place import row_turns
from perpo_pipeline.vlm.inputs import (
    IDENTITY_CACHE,
    RowError,
    context_length,
    encode_row,
    faults_of_one_row,
    prompt_images,
)
from perpo_pipeline.vlm.loading import load_without_weights
from perpo_pipeline.vlm.merging import merge_to_disk
from perpo_pipeline.vlm.models import Vlm
from perpo_pipeline.vlm.processors import decode_completions
from perpo_pipeline.vlm.prompts import (
    count_prompt_tokens,
    prepare_image,
    render_prompt,
    rendered_ids,
    resized_size,
)

if TYPE_CHECKING:
    from PIL.Image import Image

RENDERED_AHEAD = 8  # prompts held with their images and pixels
OPENERS = 4  # threads that open and decode images, which Pillow does without Python's lock


class VllmBackend:
    """Draws completions with vLLM; holds the accelerator's memory until `close`.

    Raises MissingDependencyError without vLLM, ConfigError if vLLM cannot serve the model or cannot
    draw as configured, and what `load_without_weights` and `merge_to_disk` raise.
    """

    prompts_per_call = 0  # the engine makes its own batches
    answers_alone = False  # which batches it makes depends on all prompts of the call

    def __init__(self, setup: BackendSetup) -> None:
        self.vllm = import_vllm("vllm")
        check_settings(setup.decoding, setup.settings, setup.model)
        dtype = setup.model_settings["dtype"]
        cache = setup.scratch / IDENTITY_CACHE
        self.weightless = load_without_weights(
            setup.resolved, adapter=setup.adapter, identity_cache=cache
        )
        check_layers(self.weightless.layers, self.weightless.family.name)
        check_thinking(self.weightless, setup.model.answer.thinking)
        self.decoding, self.settings, self.longest = setup.decoding, setup.settings, setup.longest
        self.preprocess: str = setup.model_settings["preprocess"]
        # Numbers of images of which a prompt's tokens were found equal to training's.
        self.compared: set[int] = set()
        # Fast tokenizers refuse two threads at once: `worker` alone uses the weightless model's.
        self.tokenizer = copy.deepcopy(self.weightless.tokenizer)
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="render")
        self.openers = ThreadPoolExecutor(OPENERS, thread_name_prefix="open")
        self._notes: dict[str, Any] = dict(idle_notes(self.weightless))
        lora_rank = None
        if setup.adapter is not None:
            lora_rank = exact_lora_rank(self.weightless.family, setup.adapter)
        path = self._folder(setup, None if lora_rank else setup.adapter)
        self.held = ExitStack()  # what is removed with the engine
        path, arguments = self.held.enter_context(
            limited_model(path, self.weightless.image_arguments)
        )
        self.llm = start_engine(
            self.vllm,
            path,
            dtype,
            lora_rank,
            setup.settings,
            arguments,
            images=setup.most_images,
            own_code=setup.resolved.own_code,
            has_states=bool(self.weightless.layers.recurrent),
        )
        self.lora = None
        if lora_rank is not None:
            request = import_vllm("vllm.lora.request").LoRARequest
            self.lora = request("adapter", 1, str(setup.adapter))
        limits = (self.llm.model_config.max_model_len, context_length(self.weightless))
        self.context: int = min(limit for limit in limits if limit is not None)
        self.refusal: type[Exception] = import_vllm("vllm.exceptions").VLLMClientError
        # How many completions wait or run at once: enough to keep the engine busy.
        self.window = 2 * self.llm.llm_engine.vllm_config.scheduler_config.max_num_seqs

    def _folder(self, setup: BackendSetup, merged: Path | None) -> Path:
        """The model that vLLM loads: the base's folder, or one with what it cannot do by itself."""
        quantised = setup.resolved.quantization
        if merged is None and quantised is None:
            return setup.resolved.path
        dtype, cache = setup.model_settings["dtype"], setup.scratch / IDENTITY_CACHE
        path = merge_to_disk(setup.resolved, merged, dtype, setup.scratch / MERGED, cache)
        base = f"the {dtype} weights that {quantised} stands for" if quantised else "its base"
        what = base if merged is None else f"the adapter merged into {base}"
        self._notes["adapter" if merged else "weights"] = f"vLLM serves {what}: {path}"
        return path

    def notes(self) -> dict[str, Any]:
        """Where the model that vLLM serves was written, if it is not the base's own folder, and
        `idle_notes`."""
        return self._notes

    def sample(
        self, rows: Sequence[Row], seeds: Sequence[int], on_done: OnDone | None = None
    ) -> list[SampledList | Failure]:
        """Draw the list of each prompt (see `backend.Backend`).

        Raises ConfigError if vLLM reads a prompt as other tokens than training does.
        """
        self._empty_caches()
        found: dict[int, SampledList | Failure] = {}
        with closing(self._finished(rows, seeds)) as results:
            for index, result in results:
                found[index] = result
                if on_done is not None:
                    on_done(index, result)
        return [found[index] for index in range(len(rows))]

    def _finished(
        self, rows: Sequence[Row], seeds: Sequence[int]
    ) -> Generator[tuple[int, SampledList | Failure]]:
        """Yield index and result of every row as it finishes."""
        engine = self.llm.llm_engine
        running: dict[int, _Prompt] = {}
        with closing(self._rendered(rows)) as waiting, self._aborting(running):
            while True:
                # Adding all prompts at once would hold the pixels of all images in memory.
                while engine.get_num_unfinished_requests() < self.window:
                    if (item := next(waiting, None)) is None:
                        break
                    index, prompt = item
                    added = self._add(index, prompt, seeds[index])
                    if isinstance(added, Failure):
                        yield index, added
                    else:
                        running[index] = added
                if not running:
                    return
                for output in engine.step():
                    if output.finished:
                        index = int(output.request_id)
                        yield index, self._collect(running.pop(index), output)

    @contextmanager
    def _aborting(self, running: Mapping[int, "_Prompt"]) -> Iterator[None]:
        """Remove requests from the engine if an error or Ctrl-C ends the call."""
        try:
            yield
        finally:
            if running:
                self.llm.llm_engine.abort_request([str(index) for index in running])

    def _rendered(self, rows: Sequence[Row]) -> Generator[tuple[int, "_Prompt | Failure"]]:
        """Yield index and prompt of every row, in order; renders ahead while the engine runs."""
        ahead: deque[tuple[int, Future[_Prompt | Failure]]] = deque()
        try:
            for index, row in enumerate(rows):
                images = self.openers.submit(prompt_images, row)
                ahead.append((index, self.worker.submit(self._render, row, images)))
                if len(ahead) > RENDERED_AHEAD:
                    first, future = ahead.popleft()
                    yield first, future.result()
            for index, future in ahead:
                yield index, future.result()
        finally:
            for _, future in ahead:
                future.cancel()
            # A render still running would fill a cache that the next call has emptied.
            wait([future for _, future in ahead])

    def _render(self, row: Row, images: "Future[list[Image]]") -> "_Prompt | Failure":
        """Turn a row into vLLM's input; runs in `worker`, which alone uses the weightless model."""
        try:
            with faults_of_one_row(row, self.refusal):
                opened, longest = images.result(), self.longest(row)
                prompt = _read(self.weightless, row, opened, self.preprocess, longest)
                # Checked before vLLM's caches see the image.
                if prompt.num_tokens is not None and (
                    failure := prompt_too_long(prompt.num_tokens, self.context)
                ):
                    return failure
                (prompt.engine_input,) = self.llm.renderer.render_cmpl([prompt.inputs])
                self._compare(prompt, row)
        except RowError as error:
            return Failure(error.reason)
        return prompt

    def _compare(self, prompt: "_Prompt", row: Row) -> None:
        """Raise ConfigError if vLLM reads other tokens than training does."""
        is_usual = num_images(row) in self.compared
        if is_usual and len(prompt.token_ids) == prompt.num_tokens:
            return
        expected = encode_row(self.weightless, row, self.preprocess).input_ids.tolist()
        compare_prompt_tokens(
            self.weightless,
            prompt.token_ids,
            expected,
            reader="vLLM",
            prompt=name_prompt(row),
            fix=f"set {self.settings.key('backend')} to transformers: vLLM may cut this model's "
            "images into a different number of tokens, or the model's tokenizer and processor "
            "files may not match",
        )
        self.compared.add(num_images(row))

    def _add(self, index: int, prompt: "_Prompt | Failure", seed: int) -> "_Prompt | Failure":
        """Add a prompt to the engine; returns a Failure if the engine refuses it."""
        if isinstance(prompt, Failure):
            return prompt
        try:
            self.llm.llm_engine.add_request(
                str(index),
                prompt.engine_input,
                self._sampling_params(seed, prompt.longest),
                lora_request=self.lora,
            )
        except (ValueError, self.refusal) as error:
            return Failure(str(error))
        return prompt

    def _sampling_params(self, seed: int, longest: int) -> Any:
        """Set every parameter that changes the distribution, so that no model default applies."""
        how = self.decoding
        return self.vllm.SamplingParams(
            n=how.num_samples,
            temperature=how.temperature,
            top_p=how.top_p,
            top_k=how.top_k or 0,
            min_p=0.0,
            repetition_penalty=how.repetition_penalty,
            presence_penalty=0.0,
            frequency_penalty=0.0,
            max_tokens=longest,
            # Completion i draws from seed + i, which must also fit in 63 bits.
            seed=seed >> 1,
            ignore_eos=True,  # the tokenizer's end token need not be one of the model's
            stop_token_ids=list(self.weightless.eos_token_ids),
            logit_bias=dict.fromkeys(self.weightless.banned_token_ids, -100.0),
            logprobs=0,  # only of the drawn tokens
            detokenize=False,
            output_kind=self.vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
        )

    def _collect(self, prompt: "_Prompt", output: Any) -> SampledList | Failure:
        drawn = output.outputs
        length = len(output.prompt_token_ids)
        for one in drawn:
            is_truncated = self._is_truncated(one, prompt.longest)
            if failure := answer_too_long(length, len(one.token_ids) + is_truncated, self.context):
                return failure
            if is_truncated:
                return Failure(
                    f"vLLM ended an answer ({one.finish_reason}) after {len(one.token_ids)} "
                    f"tokens, and max_new_tokens is {prompt.longest}"
                )
        texts = decode_completions(self.tokenizer, [one.token_ids for one in drawn])
        completions = [
            Completion(text, tuple(one.token_ids), one.finish_reason, one.cumulative_logprob)
            for text, one in zip(texts, drawn, strict=True)
        ]
        return SampledList(completions, prompt.resized)

    def _is_truncated(self, one: Any, longest: int) -> bool:
        """Whether an answer ended neither at an end token nor at max_new_tokens."""
        if one.finish_reason == "stop":
            return one.token_ids[-1] not in self.weightless.eos_token_ids
        return one.finish_reason != "length" or len(one.token_ids) != longest

    def _empty_caches(self) -> None:
        """Empty vLLM's caches: what an earlier call left there would change this call's batches."""
        self.llm.reset_prefix_cache()
        self.llm.reset_mm_cache()
        self.llm.llm_engine.reset_encoder_cache()

    def close(self) -> None:
        """Stop the engine and release its memory; the backend cannot sample after this."""
        self.worker.shutdown(cancel_futures=True)
        self.openers.shutdown(cancel_futures=True)  # after the renders that wait for an image
        self.llm.llm_engine.engine_core.shutdown()
        self.llm = None
        self.held.close()
        import_vllm("vllm.distributed.parallel_state").cleanup_dist_env_and_memory()


@dataclass
class _Prompt:
    """A row as vLLM takes it; `num_tokens` includes the image's, None if they are unknown.

    `engine_input` is what vLLM's renderer makes of `inputs`: tokens with placeholders, and pixels.
    """

    inputs: Mapping[str, Any]
    num_tokens: int | None
    resized: Size | None
    longest: int  # max_new_tokens
    engine_input: Any = None

    @property
    def token_ids(self) -> list[int]:
        """The prompt's tokens as vLLM reads them."""
        ids: list[int] = self.engine_input["prompt_token_ids"]
        return ids


def _read(vlm: Vlm, row: Row, opened: "Sequence[Image]", preprocess: str, longest: int) -> _Prompt:
    images = [prepare_image(vlm, image, preprocess) for image in opened]
    keys = [f"{image['sha256']} {preprocess}" for image in images_of(row)]  # of vLLM's caches
    text, is_one = render_prompt(vlm, row_turns(row)), len(images) == 1
    return _Prompt(
        inputs={
            "prompt_token_ids": rendered_ids(vlm, text),
            "multi_modal_data": {"image": images[0] if is_one else images},
            "multi_modal_uuids": {"image": keys[0] if is_one else keys},
        },
        num_tokens=count_prompt_tokens(vlm, text, *(image.size for image in images)),
        resized=resized_size(vlm, images[box_place(row)].size),
        longest=longest,
    )
