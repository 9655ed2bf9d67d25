"""TinyAudioModel: encode, project, splice, decode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.initialization import no_init_weights

from tiny_audio import ctc
from tiny_audio.ctc import CtcVocabulary
from tiny_audio.decoders import DecoderConfig
from tiny_audio.encoders import EncoderConfig, FeatureTransform
from tiny_audio.frames import Frames
from tiny_audio.model.assisted import AssistedDecode, TextDraft, decode_assisted, uses_draft
from tiny_audio.model.clip_durations import ClipDurations
from tiny_audio.model.config import TinyAudioConfig
from tiny_audio.model.context import ContextSettings, EncodedContext
from tiny_audio.model.decoding import GenerationConfig, Transcript
from tiny_audio.model.joint import CtcSearch, best_text
from tiny_audio.model.parts import Parts, build_parts, rebuild_parts
from tiny_audio.model.prompt import Context, Prompt
from tiny_audio.model.room import Room
from tiny_audio.model.saved import SavedModel
from tiny_audio.model.splicing import Contexts, LinearCrossEntropy, TargetScores, splice, target_losses
from tiny_audio.model.streamer import OnIds, OnText, TokenStreamer, decoding, until_end
from tiny_audio.projectors import ProjectorConfig


class TinyAudioModel(SavedModel):
    """An encoder, a projector and a decoder as one transformers model.

    Dimensions: B clips · S samples · N audio embeddings · L positions · H decoder channels · V token ids
    """

    config_class = TinyAudioConfig
    base_model_prefix = ""
    main_input_name = "waveforms"
    input_modalities = ("audio",)
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: TinyAudioConfig, parts: Parts | None = None) -> None:
        super().__init__(config)
        self.encoder, self.projector, self.decoder, _ = parts or rebuild_parts(config)
        self.ctc_vocabulary = None
        self.ctc_head: nn.Linear | None = None
        if config.ctc_characters is not None:
            self.ctc_vocabulary = CtcVocabulary(tuple(config.ctc_characters))
            self.ctc_head = nn.Linear(self.encoder.dim, len(self.ctc_vocabulary))
        self.alignment: nn.Module | None = None  # set only for training, see model/alignment.py
        # Keep transformers from initializing the parts again, which would overwrite their weights.
        with no_init_weights():
            self.post_init()
        # post_init finds tied weights only in direct children, but the tied embeddings are one level deeper.
        self.all_tied_weights_keys = self.get_expanded_tied_weights_keys(all_submodels=True)

    @classmethod
    def assemble(
        cls,
        encoder: EncoderConfig,
        projector: ProjectorConfig,
        decoder: DecoderConfig,
        *,
        tokenizer: Any,
        prompt: Prompt,
        ctc_vocabulary: CtcVocabulary | None = None,
        generation: GenerationConfig | None = None,
        context: ContextSettings | None = None,
    ) -> TinyAudioModel:
        """Build the model from the configs of its parts, with pretrained or random weights.

        Raises:
            UserError: a part cannot be built (see :mod:`tiny_audio.pretrained.building`), or the model does not
                support the settings in ``generation``.
        """
        parts = build_parts(encoder, projector, decoder, tokenizer)
        config = TinyAudioConfig(
            encoder=encoder.model_dump(mode="json"),
            projector=projector.model_dump(mode="json"),
            decoder=decoder.model_dump(mode="json"),
            encoder_architecture=parts.encoder.architecture(),
            decoder_architecture=parts.decoder.architecture(),
            embedding_rms=parts.embedding_rms,
            ctc_characters=ctc_vocabulary.characters if ctc_vocabulary else None,
            prompt_prefix_ids=prompt.prefix_ids,
            prompt_suffix_ids=prompt.suffix_ids,
            end_token_id=prompt.end_id,
            generation=(generation or GenerationConfig()).model_dump(mode="json"),
            context=None if context is None else context.model_dump(mode="json"),
        )
        model = cls(config, parts)
        model.uses_ctc_draft()  # raises for settings that the model does not support
        return model

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing. Parts are initialized when they are built, and loading a model fills every tensor."""

    def encode(self, waveforms: Tensor, lengths: Tensor, transform: FeatureTransform | None = None) -> Frames:
        """Encode waveforms to frames, including CTC logits if the model has a CTC head.

        Args:
            waveforms: ``[B, S]`` float32 at 16 kHz.
            lengths: ``[B]`` in samples.
            transform: see :meth:`forward`.
        """
        return self._with_ctc_logits(self.encoder(waveforms, lengths, transform))

    def _with_ctc_logits(self, frames: Frames) -> Frames:
        return frames if self.ctc_head is None else replace(frames, ctc_logits=self.ctc_head(frames.values))

    def splice(
        self,
        audio: Tensor,
        audio_lengths: Tensor,
        ids: Sequence[Tensor],
        *,
        padding_side: str,
        contexts: Contexts | None = None,
    ) -> tuple[Tensor, Tensor]:
        """In each row, concatenate prompt prefix, context, unpadded audio embeddings, prompt suffix and text.

        Args:
            audio: ``[B, N, H]``.
            audio_lengths: ``[B]``.
            ids: B rows of token ids that follow the prompt. Rows are empty at inference.
            padding_side: ``right`` to train, ``left`` to generate.
            contexts: the token ids of each row's context, see :meth:`encode_context`. None if no row has a context.

        Returns:
            Embeddings ``[B, L, H]`` and their bool mask ``[B, L]``.
        """
        prefix, suffix = self.config.prompt_prefix_ids, self.config.prompt_suffix_ids
        return splice(self.decoder, prefix, suffix, audio, audio_lengths, ids, padding_side, contexts)

    def score_embeddings(
        self,
        audio: Tensor,
        audio_lengths: Tensor,
        targets: Sequence[Tensor],
        label_smoothing: float = 0.0,
        linear_cross_entropy: LinearCrossEntropy | None = None,
        contexts: Contexts | None = None,
    ) -> Tensor:
        """Return the negative log-likelihoods ``[B]`` of B rows of token ids. Each row ends in the end token."""
        texts = [row[:-1] for row in targets]
        embeddings, mask = self.splice(audio, audio_lengths, texts, padding_side="right", contexts=contexts)
        num_shared = len(self.config.prompt_prefix_ids)
        return target_losses(self.decoder, embeddings, mask, targets, label_smoothing, linear_cross_entropy, num_shared)

    def forward(
        self,
        waveforms: Tensor,
        waveform_lengths: Tensor,
        targets: Sequence[Tensor],
        ctc_targets: Sequence[Sequence[int]] | None = None,
        transform: FeatureTransform | None = None,
        label_smoothing: float = 0.0,
        linear_cross_entropy: LinearCrossEntropy | None = None,
        frames: Frames | None = None,
        contexts: Contexts | None = None,
        skip_decoder: bool = False,
    ) -> TargetScores:
        """Compute teacher-forced losses.

        Args:
            waveforms: ``[B, S]`` float32 at 16 kHz.
            waveform_lengths: ``[B]`` in samples.
            targets: B rows of token ids, each ending in the end token.
            ctc_targets: B rows of CTC labels, required if the model has a CTC head.
            transform: a function such as SpecAugment, applied to the features before the encoder's layers.
            label_smoothing: share of each target's probability that is spread over the vocabulary.
            linear_cross_entropy: computes losses directly from hidden states. If None, logits are computed first.
            frames: the encoder's frames of these clips. If given, the encoder is not run.
            contexts: see :meth:`splice`.
            skip_decoder: do not run the decoder. The decoder's loss is then 0.
        """
        assert self.ctc_head is None or ctc_targets is not None, "a model with a CTC head trains on CTC targets"
        frames = self._with_ctc_logits(frames) if frames else self.encode(waveforms, waveform_lengths, transform)
        settings = (label_smoothing, linear_cross_entropy, contexts, skip_decoder)
        return self.score_frames(frames, targets, ctc_targets, *settings)

    def score_frames(
        self,
        frames: Frames,
        targets: Sequence[Tensor],
        ctc_targets: Sequence[Sequence[int]] | None = None,
        label_smoothing: float = 0.0,
        linear_cross_entropy: LinearCrossEntropy | None = None,
        contexts: Contexts | None = None,
        skip_decoder: bool = False,
    ) -> TargetScores:
        """Compute the losses of :meth:`forward` from the frames of :meth:`encode`.

        There is no CTC loss if ``ctc_targets`` is None.
        """
        ctc_loss = None
        if frames.ctc_logits is not None and ctc_targets is not None:
            ctc_loss = -ctc.log_likelihood(frames.ctc_logits, frames.lengths, ctc_targets)
        audio, audio_lengths = self.projector(frames)
        if skip_decoder:
            decoder_loss = torch.zeros(len(targets), device=audio.device)
        else:
            settings = (label_smoothing, linear_cross_entropy, contexts)
            decoder_loss = self.score_embeddings(audio, audio_lengths, targets, *settings)
        if self.alignment is None or not self.training:
            return TargetScores(decoder_loss, ctc_loss)
        return TargetScores(decoder_loss, ctc_loss, *self.alignment(self.decoder, audio, audio_lengths, targets))

    @torch.no_grad()
    def generate(
        self,
        waveforms: Tensor,
        waveform_lengths: Tensor | None = None,
        contexts: Contexts | None = None,
        **settings: Any,
    ) -> Any:
        """Generate the transcripts' token ids ``[B, new tokens]``. Rows are padded after their end token.

        For joint or assisted decoding with the CTC head, use :meth:`transcribe`.

        Args:
            waveforms: ``[B, S]`` float32 at 16 kHz.
            waveform_lengths: ``[B]`` in samples. None if no row is padded.
            contexts: see :meth:`splice`.
            settings: settings of transformers' ``generate``. They override the model's own settings.
        """
        if waveform_lengths is None:
            waveform_lengths = torch.full((len(waveforms),), waveforms.shape[1], device=waveforms.device)
        audio, audio_lengths = self.projector(self.encode(waveforms, waveform_lengths))
        return self._generate_spliced(self._prompts(audio, audio_lengths, contexts), self.generation, **settings)

    def _generate_spliced(self, prompts: tuple[Tensor, Tensor], generation: GenerationConfig, **settings: Any) -> Any:
        defaults = {
            "max_new_tokens": generation.max_new_tokens,
            "num_beams": generation.num_beams,
            "do_sample": False,
            "eos_token_id": self.config.end_token_id,
            "pad_token_id": self.config.end_token_id,
        }
        return self.decoder.generate(*prompts, **(defaults | settings))

    def _prompts(self, audio: Tensor, audio_lengths: Tensor, contexts: Contexts | None = None) -> tuple[Tensor, Tensor]:
        """Return left-padded embeddings ``[B, L, H]`` of the prompts with their audio, and the mask ``[B, L]``."""
        nothing = torch.empty(0, dtype=torch.long, device=audio.device)
        return self.splice(audio, audio_lengths, [nothing] * len(audio), padding_side="left", contexts=contexts)

    @property
    def generation(self) -> GenerationConfig:
        """The model's own decoding settings."""
        return GenerationConfig(**self.config.generation)

    @property
    def clip_durations(self) -> ClipDurations | None:
        """Durations of the clips that the model was trained on. None if they are not recorded."""
        recorded = self.config.clip_durations
        return None if recorded is None else ClipDurations(**recorded)

    def longest_clip_s(self, at_most_s: float) -> float:
        """Return the maximum duration of a clip in seconds, given the limits of the encoder and the decoder.

        If the model was trained with context (such as hotwords), positions for the longest context are reserved.

        Args:
            at_most_s: upper bound of the result.
        """
        return Room(self.config, self.projector).longest_clip_s(at_most_s)

    def encode_context(self, tokenizer: Any, *, longest_s: float = 30.0, **context: Any) -> EncodedContext:
        """Return the token ids of a context, for ``contexts`` of :meth:`generate`.

        Args:
            tokenizer: the decoder's tokenizer.
            longest_s: duration of the longest clip.
            context: ``hotwords``, ``previous_text`` and ``language``, see :class:`tiny_audio.model.prompt.Context`.

        Raises:
            UserError: see :class:`tiny_audio.model.context.ContextEncoder`.
        """
        return Room(self.config, self.projector).context_encoder(tokenizer, longest_s).encode(Context.of(**context))

    def uses_ctc_draft(self, settings: GenerationConfig | None = None) -> bool:
        """Whether :meth:`transcribe` uses the CTC head's text as a draft (see ``GenerationConfig.draft``).

        Raises:
            UserError: see :func:`tiny_audio.model.assisted.uses_draft`.
        """
        return uses_draft(settings or self.generation, self.decoder, has_ctc_head=self.ctc_head is not None)

    @torch.no_grad()
    def transcribe(
        self, waveforms: Tensor, waveform_lengths: Tensor, tokenizer: Any, contexts: Contexts | None = None
    ) -> list[Transcript]:
        """Transcribe a batch with the model's own settings (greedy, with beams, or jointly with the CTC head)."""
        return self.transcribe_frames(self.encode(waveforms, waveform_lengths), tokenizer, contexts=contexts)

    @torch.no_grad()
    def transcribe_frames(
        self,
        frames: Frames,
        tokenizer: Any,
        on_text: OnText | None = None,
        settings: GenerationConfig | None = None,
        contexts: Contexts | None = None,
    ) -> list[Transcript]:
        """Transcribe like :meth:`transcribe`, but from the frames that :meth:`encode` returned.

        Args:
            frames: frames of B clips, with CTC logits if the model has a CTC head.
            tokenizer: the decoder's tokenizer.
            on_text: called with the index of a clip and its text so far.
            settings: decoding settings. If None, the model's own settings are used.
            contexts: see :meth:`splice`.
        """
        audio, audio_lengths = self.projector(frames)
        settings, end = settings or self.generation, self.config.end_token_id
        on_ids = on_text and decoding(on_text, tokenizer, end)
        num_candidates = settings.num_beams if settings.ctc_weight else 1
        ctc_texts = self.ctc_texts(frames)
        if self.uses_ctc_draft(settings):
            drafts = [text or "" for text in ctc_texts]
            most = settings.max_new_tokens
            clips = self.verify(audio, audio_lengths, drafts, tokenizer, on_ids, max_new_tokens=most, contexts=contexts)
            sequences = [clip.ids for clip in clips]
        else:
            hooks: dict[str, Any] = {} if on_ids is None else {"stopping_criteria": [TokenStreamer(len(audio), on_ids)]}
            if settings.ctc_search and self.ctc_vocabulary is not None:
                search = CtcSearch(frames, self.ctc_vocabulary, tokenizer, end, settings.ctc_weight)
                hooks["logits_processor"] = [search]
            prompts = self._prompts(audio, audio_lengths, contexts)
            found = self._generate_spliced(prompts, settings, num_return_sequences=num_candidates, **hooks)
            sequences = found.tolist()
        rows = [until_end(row, end) for row in sequences]
        texts = [tokenizer.decode(row, skip_special_tokens=True).strip() for row, _ in rows]
        transcripts = []
        for clip, ctc_text in enumerate(ctc_texts):
            own = range(clip * num_candidates, (clip + 1) * num_candidates)
            truncated = {texts[row] for row in own} - {texts[row] for row in own if rows[row][1]}
            candidates = {texts[row]: texts[row] in truncated for row in own}
            best = texts[own[0]]
            if settings.ctc_weight and frames.ctc_logits is not None:
                candidates.setdefault(ctc_text or "", False)
                one = slice(clip, clip + 1)
                clip_frames = Frames(frames.values[one], frames.lengths[one], frames.rate, frames.ctc_logits[one])
                of_clip = (audio[one], audio_lengths[one], contexts and contexts[one])
                scores = self._log_likelihoods(list(candidates), *of_clip, tokenizer)
                assert self.ctc_vocabulary is not None
                best = best_text(list(candidates), scores, clip_frames, self.ctc_vocabulary, settings.ctc_weight)
            transcripts.append(Transcript(best, ctc_text, candidates[best]))
        return transcripts

    @torch.no_grad()
    def verify(
        self,
        audio: Tensor,
        audio_lengths: Tensor,
        texts: Sequence[str],
        tokenizer: Any,
        on_ids: OnIds | None = None,
        *,
        max_new_tokens: int | None = None,
        contexts: Contexts | None = None,
    ) -> list[AssistedDecode]:
        """Decode B clips greedily, with drafts of their texts.

        Args:
            audio: ``[B, N, H]``, from the projector.
            audio_lengths: ``[B]``.
            texts: B drafts. A wrong draft only makes decoding slower.
            tokenizer: the decoder's tokenizer.
            on_ids: see :func:`tiny_audio.model.assisted.decode_assisted`.
            max_new_tokens: maximum number of tokens of a clip. If None, the model's own setting is used.
            contexts: see :meth:`splice`.
        """
        cache = self.decoder.cache()
        assert cache is not None, "a decoder without a cache that can be rewound cannot verify drafts"
        end, limit = self.config.end_token_id, max_new_tokens or self.generation.max_new_tokens
        drafts = [TextDraft(text, tokenizer, end) for text in texts]
        prompts = self._prompts(audio, audio_lengths, contexts)
        return decode_assisted(self.decoder, cache, *prompts, drafts, max_new_tokens=limit, end_id=end, on_ids=on_ids)

    def _log_likelihoods(
        self, texts: Sequence[str], audio: Tensor, lengths: Tensor, contexts: Contexts | None, tokenizer: Any
    ) -> Tensor:
        """Return the log-likelihoods ``[K]`` of K texts of one clip under the decoder."""
        count, end = len(texts), self.config.end_token_id
        rows = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        targets = [torch.tensor([*row, end], device=audio.device) for row in rows]
        repeated = None if contexts is None else list(contexts) * count
        return -self.score_embeddings(audio.expand(count, -1, -1), lengths.expand(count), targets, contexts=repeated)

    def ctc_texts(self, frames: Frames) -> list[str | None]:
        """Return the CTC head's own greedy texts of B clips, or None for each clip if the model has no CTC head."""
        if frames.ctc_logits is None or self.ctc_vocabulary is None:
            return [None] * len(frames.lengths)
        labels = ctc.greedy(frames.ctc_logits, frames.lengths)
        return [self.ctc_vocabulary.decode(row).strip() for row in labels]
