// Turns the microphone's audio into 16-bit samples at 16 kHz, in messages of 100 ms.
const RATE = 16000;

class Samples extends AudioWorkletProcessor {
  constructor() {
    super();
    this.step = sampleRate / RATE; // input samples for each output sample
    this.position = 0; // position of the next output sample, in input samples from the start of the block
    this.previous = 0; // last sample of the previous block
    this.samples = new Int16Array(RATE / 10);
    this.count = 0;
    this.ended = false;
    this.port.onmessage = () => {
      this.ended = true;
      this.port.postMessage(this.samples.slice(0, this.count));
      this.port.postMessage("ended");
    };
  }

  process([[input]]) {
    if (this.ended || !input) return !this.ended;
    const at = (index) => (index < 0 ? this.previous : input[index]);
    for (; this.position <= input.length - 1; this.position += this.step) {
      const index = Math.floor(this.position);
      const fraction = this.position - index;
      const value = fraction ? at(index) * (1 - fraction) + at(index + 1) * fraction : at(index);
      this.samples[this.count++] = Math.round(Math.max(-1, Math.min(1, value)) * 32767);
      if (this.count === this.samples.length) {
        this.port.postMessage(this.samples.slice());
        this.count = 0;
      }
    }
    this.position -= input.length;
    this.previous = input[input.length - 1];
    return true;
  }
}

registerProcessor("samples", Samples);
