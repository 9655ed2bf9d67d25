// The microphone, as 16-bit samples at 16 kHz.

export const RATE = 16000;
const CUTOFF_HZ = 7000;
// Q factors of the four stages of a Butterworth filter of order 8.
const BUTTERWORTH = [0.5098, 0.6013, 0.9, 2.5629];

/**
 * Open the microphone. The browser may ask the user for permission.
 *
 * @param {(samples: Int16Array) => void} onSamples called with each 100 ms of audio
 * @param {() => void} onLost called if the device disappears
 * @param {(paused: boolean) => void} onPause called when the browser or the device pauses or continues the audio
 * @returns {Promise<() => Promise<void>>} a function that delivers the last samples and then stops the microphone
 */
export async function openMicrophone(onSamples, onLost, onPause) {
  const stream = await navigator.mediaDevices.getUserMedia({
    // The browser's filters for calls are off, because they remove parts of speech that a recognizer needs.
    audio: { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: true },
  });
  const [track] = stream.getAudioTracks();
  const release = () => stream.getTracks().forEach((track) => track.stop());
  let context;
  try {
    const source = sourceOf(stream);
    context = source.context;
    await context.audioWorklet.addModule(new URL("worklet.js", import.meta.url));
    const worklet = new AudioWorkletNode(context, "samples", { channelCount: 1, channelCountMode: "explicit" });
    const ended = new Promise((resolve) => {
      worklet.port.onmessage = ({ data }) => (data === "ended" ? resolve() : onSamples(data));
    });
    // Some browsers run only nodes that are connected to the loudspeaker. This node outputs silence.
    source.connect(worklet).connect(context.destination);
    if (track.readyState === "ended") throw new DOMException("it was disconnected", "AbortError");
    // Resume the audio, because a phone call or another app can pause it. Keep the screen on, because a phone whose
    // screen turns off stops the microphone.
    let awake;
    const keepRunning = () => {
      context.resume().catch(() => {}); // This may wait until the user returns to the page.
      awake = navigator.wakeLock?.request("screen").catch(() => null);
    };
    keepRunning();
    context.onstatechange = () => onPause(context.state !== "running");
    document.addEventListener("visibilitychange", keepRunning);
    track.onended = onLost;
    return async () => {
      context.onstatechange = track.onended = null;
      document.removeEventListener("visibilitychange", keepRunning);
      awake?.then((lock) => lock?.release());
      worklet.port.postMessage("end");
      // A paused context does not answer, so wait at most a second.
      await Promise.race([ended, new Promise((resolve) => setTimeout(resolve, 1000))]);
      release();
      context.close();
    };
  } catch (error) {
    release();
    context?.close(); // Browsers allow only a few open contexts.
    throw error;
  }
}

/** Return a node with the audio of the stream, without frequencies above 8 kHz, so that it can be sampled at 16 kHz. */
function sourceOf(stream) {
  const context = new AudioContext({ sampleRate: RATE });
  try {
    return context.createMediaStreamSource(stream);
  } catch (error) {
    // Firefox does not resample microphones. So use the microphone's own rate here. worklet.js resamples to 16 kHz.
    context.close();
    if (error.name !== "NotSupportedError") throw error;
  }
  const own = new AudioContext();
  return BUTTERWORTH.reduce((node, q) => {
    // For low-pass filters, Web Audio takes Q in decibels.
    const stage = new BiquadFilterNode(own, { type: "lowpass", frequency: CUTOFF_HZ, Q: 20 * Math.log10(q) });
    return node.connect(stage);
  }, own.createMediaStreamSource(stream));
}

/** Return a WAV file of the samples. */
export function wavFile(chunks) {
  const size = chunks.reduce((sum, chunk) => sum + chunk.byteLength, 0);
  const header = new DataView(new ArrayBuffer(44));
  const text = (offset, letters) => [...letters].forEach((letter, i) => header.setUint8(offset + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  header.setUint32(4, 36 + size, true);
  text(8, "WAVEfmt ");
  header.setUint32(16, 16, true); // size of this section
  header.setUint16(20, 1, true); // PCM
  header.setUint16(22, 1, true); // channels
  header.setUint32(24, RATE, true);
  header.setUint32(28, 2 * RATE, true); // bytes per second
  header.setUint16(32, 2, true); // bytes per sample
  header.setUint16(34, 16, true); // bits per sample
  text(36, "data");
  header.setUint32(40, size, true);
  return new Blob([header, ...chunks], { type: "audio/wav" });
}
