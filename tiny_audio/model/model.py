"""TinyAudioModel: encode, project, splice, decode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.initialization import no_init_weights

from tiny_audio import ctc
from tiny_audio.config import UserError
from tiny_audio.ctc import CtcVocabulary
from tiny_audio.decoders import DECODERS, DecoderConfig
from tiny_audio.encoders import ENCODERS, EncoderConfig, FeatureTransform
from tiny_audio.frames import Frames
from tiny_audio.model.assisted import AssistedDecode, TextDraft, decode_assisted
from tiny_audio.model.config import TinyAudioConfig
from tiny_audio.model.decoding import GenerationConfig, Transcript
from tiny_audio.model.limits import longest_clip_s
from tiny_audio.model.parts import Parts, build_parts
from tiny_audio.model.prompt import Prompt
from tiny_audio.model.saved import SavedModel
from tiny_audio.model.splicing import LinearCrossEntropy, TargetScores, splice, target_losses
from tiny_audio.model.streamer import OnIds, OnText, TokenStreamer
from tiny_audio.projectors import PROJECTORS, ProjectorConfig


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
        self.encoder, self.projector, self.decoder, _ = parts or self._rebuild(config)
        self.ctc_vocabulary = None
        self.ctc_head: nn.Linear | None = None
        if config.ctc_characters is not None:
            self.ctc_vocabulary = CtcVocabulary(tuple(config.ctc_characters))
            self.ctc_head = nn.Linear(self.encoder.dim, len(self.ctc_vocabulary))
        self.alignment: nn.Module | None = None  # set by training, see model/alignment.py
        # All parts are already initialized. transformers' generic initialization would overwrite their weights.
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
    ) -> TinyAudioModel:
        """Build the model from the configs of its parts. Load pretrained weights if the configs name a checkpoint.

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
        )
        model = cls(config, parts)
        model.uses_ctc_draft()  # raises for settings that the model does not support
        return model

    @staticmethod
    def _rebuild(config: TinyAudioConfig) -> Parts:
        return build_parts(
            ENCODERS.parse(config.encoder),
            PROJECTORS.parse(config.projector),
            DECODERS.parse(config.decoder),
            encoder_architecture=config.encoder_architecture,
            decoder_architecture=config.decoder_architecture,
            embedding_rms=config.embedding_rms,
        )

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
        self, audio: Tensor, audio_lengths: Tensor, ids: Sequence[Tensor], *, padding_side: str
    ) -> tuple[Tensor, Tensor]:
        """Concatenate the prompt prefix, the audio embeddings without padding, the prompt suffix and text in each row.

        Args:
            audio: ``[B, N, H]``.
            audio_lengths: ``[B]``.
            ids: B rows of token ids that follow the prompt. Rows are empty at inference.
            padding_side: ``right`` to train, ``left`` to generate.

        Returns:
            Embeddings ``[B, L, H]`` and their bool mask ``[B, L]``.
        """
        prefix, suffix = self.config.prompt_prefix_ids, self.config.prompt_suffix_ids
        return splice(self.decoder, prefix, suffix, audio, audio_lengths, ids, padding_side)

    def score_embeddings(
        self,
        audio: Tensor,
        audio_lengths: Tensor,
        targets: Sequence[Tensor],
        label_smoothing: float = 0.0,
        linear_cross_entropy: LinearCrossEntropy | None = None,
    ) -> Tensor:
        """Return the negative log-likelihoods ``[B]`` of B rows of token ids. Each row ends in the end token."""
        embeddings, mask = self.splice(audio, audio_lengths, [row[:-1] for row in targets], padding_side="right")
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
    ) -> TargetScores:
        """Compute teacher-forced losses.

        Args:
            waveforms: ``[B, S]`` float32 at 16 kHz.
            waveform_lengths: ``[B]`` in samples.
            targets: B rows of token ids, each ending in the end token.
            ctc_targets: B rows of CTC labels. They are required if the model has a CTC head.
            transform: a function such as SpecAugment. It is applied to the features before the encoder's layers.
            label_smoothing: share of each target's probability that is spread over the vocabulary.
            linear_cross_entropy: a function that computes losses from hidden states without logits. If None, logits
                are computed first.
            frames: the encoder's frames of these clips, if they are known. Then the encoder is not run.
        """
        assert self.ctc_head is None or ctc_targets is not None, "a model with a CTC head trains on CTC targets"
        frames = self._with_ctc_logits(frames) if frames else self.encode(waveforms, waveform_lengths, transform)
        return self.score_frames(frames, targets, ctc_targets, label_smoothing, linear_cross_entropy)

    def score_frames(
        self,
        frames: Frames,
        targets: Sequence[Tensor],
        ctc_targets: Sequence[Sequence[int]] | None = None,
        label_smoothing: float = 0.0,
        linear_cross_entropy: LinearCrossEntropy | None = None,
    ) -> TargetScores:
        """Compute the losses of :meth:`forward` from frames of :meth:`encode`. ``ctc_targets`` None: no CTC loss."""
        ctc_loss = None
        if frames.ctc_logits is not None and ctc_targets is not None:
            ctc_loss = -ctc.log_likelihood(frames.ctc_logits, frames.lengths, ctc_targets)
        audio, audio_lengths = self.projector(frames)
        decoder_loss = self.score_embeddings(audio, audio_lengths, targets, label_smoothing, linear_cross_entropy)
        if self.alignment is None or not self.training:
            return TargetScores(decoder_loss, ctc_loss)
        return TargetScores(decoder_loss, ctc_loss, *self.alignment(self.decoder, audio, audio_lengths, targets))

    @torch.no_grad()
    def generate(self, waveforms: Tensor, waveform_lengths: Tensor | None = None, **settings: Any) -> Any:
        """Generate the transcripts' token ids ``[B, new tokens]``. Rows are padded after their end token.

        The CTC head is not used here. :meth:`transcribe` uses it if ``generation.ctc_weight`` > 0.

        Args:
            waveforms: ``[B, S]`` float32 at 16 kHz.
            waveform_lengths: ``[B]`` in samples. None if no row is padded.
            settings: settings of transformers' ``generate``. They override the model's own settings.
        """
        if waveform_lengths is None:
            waveform_lengths = torch.full((len(waveforms),), waveforms.shape[1], device=waveforms.device)
        audio, audio_lengths = self.projector(self.encode(waveforms, waveform_lengths))
        return self._generate_spliced(audio, audio_lengths, self.generation, **settings)

    def _generate_spliced(
        self, audio: Tensor, audio_lengths: Tensor, generation: GenerationConfig, **settings: Any
    ) -> Any:
        embeddings, mask = self._prompts(audio, audio_lengths)
        defaults = {
            "max_new_tokens": generation.max_new_tokens,
            "num_beams": generation.num_beams,
            "do_sample": False,
            "eos_token_id": self.config.end_token_id,
            "pad_token_id": self.config.end_token_id,
        }
        return self.decoder.generate(embeddings, mask, **(defaults | settings))

    def _prompts(self, audio: Tensor, audio_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return left-padded embeddings ``[B, L, H]`` of the prompts with their audio, and the mask ``[B, L]``."""
        nothing = torch.empty(0, dtype=torch.long, device=audio.device)
        return self.splice(audio, audio_lengths, [nothing] * len(audio), padding_side="left")

    @property
    def generation(self) -> GenerationConfig:
        """The model's own decoding settings."""
        return GenerationConfig(**self.config.generation)

    def longest_clip_s(self, at_most_s: float) -> float:
        """Return the duration of the longest clip that the encoder accepts and that fits the decoder's context.

        Args:
            at_most_s: upper bound of the result. It applies if the model's own limits are higher.
        """
        encoder = ENCODERS.parse(self.config.encoder).with_architecture(self.config.encoder_architecture)
        decoder = DECODERS.parse(self.config.decoder).with_architecture(self.config.decoder_architecture)
        num_prompt_ids = len(self.config.prompt_prefix_ids) + len(self.config.prompt_suffix_ids)
        num_text_ids = num_prompt_ids + self.generation.max_new_tokens
        return longest_clip_s(encoder, self.projector, decoder.max_positions(), num_text_ids, at_most_s)

    def uses_ctc_draft(self, settings: GenerationConfig | None = None) -> bool:
        """Whether :meth:`transcribe` uses the CTC head's text as a draft (see ``GenerationConfig.draft``).

        Raises:
            UserError: ``draft: ctc`` is set, but there is no CTC head, or the decoder's cache cannot be rewound.
        """
        settings = settings or self.generation
        can_rewind = self.decoder.cache() is not None
        if settings.draft == "ctc" and self.ctc_head is None:
            raise UserError("generation.draft: ctc needs a CTC head, and this model has none; leave draft out")
        if settings.draft == "ctc" and not can_rewind:
            raise UserError(
                f"generation.draft: the decoder {self.config.decoder['name']!r} cannot rewind its cache, which drafts "
                "require; leave draft out"
            )
        if settings.draft is None:
            in_half = torch.is_autocast_enabled(self.device.type) or any(
                tensor.dtype in (torch.bfloat16, torch.float16) for tensor in self.decoder.parameters()
            )
            return self.ctc_head is not None and settings.num_beams == 1 and can_rewind and not in_half
        return settings.draft == "ctc"

    @torch.no_grad()
    def transcribe(self, waveforms: Tensor, waveform_lengths: Tensor, tokenizer: Any) -> list[Transcript]:
        """Transcribe a batch with the model's own settings (greedy, with beams, or jointly with the CTC head)."""
        return self.transcribe_frames(self.encode(waveforms, waveform_lengths), tokenizer)

    @torch.no_grad()
    def transcribe_frames(
        self,
        frames: Frames,
        tokenizer: Any,
        on_text: OnText | None = None,
        settings: GenerationConfig | None = None,
    ) -> list[Transcript]:
        """Transcribe like :meth:`transcribe`, but from the frames that :meth:`encode` returned.

        Args:
            frames: frames of B clips, with CTC logits if the model has a CTC head.
            tokenizer: the decoder's tokenizer.
            on_text: called with the index of a clip and its text so far.
            settings: decoding settings. None uses the model's own settings.
        """
        audio, audio_lengths = self.projector(frames)
        on_ids = self._decoding(on_text, tokenizer)
        settings = settings or self.generation
        num_candidates = settings.num_beams if settings.ctc_weight else 1
        ctc_texts = self.ctc_texts(frames)
        if self.uses_ctc_draft(settings):
            drafts = [text or "" for text in ctc_texts]
            limit = settings.max_new_tokens
            decoded = self.verify(audio, audio_lengths, drafts, tokenizer, on_ids, max_new_tokens=limit)
            sequences = [clip.ids for clip in decoded]
        else:
            streamer = {} if on_ids is None else {"stopping_criteria": [TokenStreamer(len(audio), on_ids)]}
            found = self._generate_spliced(
                audio, audio_lengths, settings, num_return_sequences=num_candidates, **streamer
            )
            sequences = found.tolist()
        rows = [self._until_end(row) for row in sequences]
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
                best = self._best(list(candidates), clip_frames, (audio[one], audio_lengths[one]), tokenizer, settings)
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
    ) -> list[AssistedDecode]:
        """Decode B clips greedily, with drafts of their texts.

        Args:
            audio: ``[B, N, H]``, from the projector.
            audio_lengths: ``[B]``.
            texts: B drafts. A wrong draft makes decoding slower, but does not change the result.
            tokenizer: the decoder's tokenizer.
            on_ids: see :func:`tiny_audio.model.assisted.decode_assisted`.
            max_new_tokens: None uses the model's own setting.
        """
        cache = self.decoder.cache()
        assert cache is not None, "uses_ctc_draft is False for such a decoder"
        end, limit = self.config.end_token_id, max_new_tokens or self.generation.max_new_tokens
        drafts = [TextDraft(text, tokenizer, end) for text in texts]
        prompts = self._prompts(audio, audio_lengths)
        return decode_assisted(self.decoder, cache, *prompts, drafts, max_new_tokens=limit, end_id=end, on_ids=on_ids)

    def _best(
        self,
        texts: list[str],
        frames: Frames,
        audio: tuple[Tensor, Tensor],
        tokenizer: Any,
        settings: GenerationConfig,
    ) -> str:
        """Return the text with the highest joint score of decoder and CTC head, for one clip."""
        assert self.ctc_vocabulary is not None
        assert frames.ctc_logits is not None
        device, count = frames.values.device, len(texts)
        targets = [
            torch.tensor([*tokenizer.encode(text, add_special_tokens=False), self.config.end_token_id], device=device)
            for text in texts
        ]
        embeddings, lengths = audio
        by_decoder = -self.score_embeddings(embeddings.expand(count, -1, -1), lengths.expand(count), targets)
        labels = [self.ctc_vocabulary.encode(text) for text in texts]
        by_ctc = ctc.log_likelihood(
            frames.ctc_logits.expand(count, -1, -1), frames.lengths.expand(count), [row or [] for row in labels]
        )
        for index, row in enumerate(labels):
            if row is None:  # a character that the head cannot spell
                by_ctc[index] = -torch.inf
        scores = (1 - settings.ctc_weight) * by_decoder + settings.ctc_weight * by_ctc
        return texts[int(scores.argmax())]

    def ctc_texts(self, frames: Frames) -> list[str | None]:
        """Return the CTC head's own greedy texts of B clips, or None for each clip if the model has no CTC head."""
        if frames.ctc_logits is None or self.ctc_vocabulary is None:
            return [None] * len(frames.lengths)
        labels = ctc.greedy(frames.ctc_logits, frames.lengths)
        return [self.ctc_vocabulary.decode(row).strip() for row in labels]

    def _decoding(self, on_text: OnText | None, tokenizer: Any) -> OnIds | None:
        """Return a callback that decodes token ids and calls ``on_text`` with the text."""
        if on_text is None:
            return None

        def on_ids(clip: int, ids: list[int]) -> None:
            on_text(clip, tokenizer.decode(self._until_end(ids)[0], skip_special_tokens=True).strip())

        return on_ids

    def _until_end(self, ids: list[int]) -> tuple[list[int], bool]:
        """Return the ids before the first end token, and whether there is an end token."""
        end = self.config.end_token_id
        return (ids[: ids.index(end)], True) if end in ids else (ids, False)
