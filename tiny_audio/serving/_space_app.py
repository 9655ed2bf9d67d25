"""A demo that transcribes the visitor's audio. Written by `tiny-audio push --space`."""

from __future__ import annotations

from typing import Any

MODEL = "owner/name"
REVISION: str | None = None


def build_demo() -> Any:
    """Load the model and return its Gradio interface."""
    import gradio
    from transformers import pipeline

    recognizer = pipeline("automatic-speech-recognition", model=MODEL, revision=REVISION, trust_remote_code=True)
    # Only models with a CTC head give the times of words. For other models, ask for the times of segments.
    times = "word" if recognizer.model.ctc_head is not None else True

    def transcribe(audio: str | None) -> tuple[str, list[list[Any]]]:
        if audio is None:
            raise gradio.Error("Record or choose audio first.")
        try:
            found = recognizer(audio, return_timestamps=times)
        except ValueError as error:  # such as a file without audio
            raise gradio.Error(str(error)) from error
        return found["text"], [
            [*(round(second, 2) for second in one["timestamp"]), one["text"]] for one in found["chunks"]
        ]

    return gradio.Interface(
        transcribe,
        gradio.Audio(sources=["microphone", "upload"], type="filepath", label="Speech"),
        [
            gradio.Textbox(label="Text", lines=4),
            gradio.Dataframe(headers=["start (s)", "end (s)", "text"], label="Times", interactive=False),
        ],
        title=MODEL.rpartition("/")[2],
        description=f"Speech to text with [{MODEL}](https://huggingface.co/{MODEL}). "
        "The model can write words that nobody spoke.",
        flagging_mode="never",
        api_name="transcribe",
    )


if __name__ == "__main__":
    build_demo().launch()
