import { openMicrophone, wavFile, RATE } from "./microphone.js";
import { openLive, readCard, setKey, subtitles, transcribe, ServerError } from "./server.js";
import { clock, Transcript } from "./transcript.js";

const $ = (id) => document.getElementById(id);
const player = $("player");
const transcript = new Transcript($("transcript"), player);

let card = null; // what the server says about its model
let recording = null; // {chunks, samples, status, stop (stops the microphone), live (connection for live text)}
let refocus = false; // whether Record lost the focus when it was disabled, and must get it back when it is enabled
let running = null; // AbortController of the last request to transcribe a file
let last = null; // {audio, name} of the last transcription, so that it can be tried again
let result = null; // transcript on the page

// States: idle, starting (waits for permission), recording, finishing (waits for the last texts), transcribing (a file).

function enter(state, status) {
  document.body.dataset.state = state;
  $("status").textContent = status;
  $("clock").textContent = "";
  const isRecording = state === "recording";
  $("record-label").textContent = isRecording ? "Stop" : "Record";
  refocus ||= document.activeElement === $("record");
  $("record").disabled = !(isRecording || (state === "idle" && canRecord()));
  if (!$("record").disabled) {
    if (refocus && document.activeElement === document.body) $("record").focus();
    refocus = false;
  }
  $("choose").disabled = state !== "idle";
  $("cancel").hidden = !["starting", "finishing", "transcribing"].includes(state);
  if (!isRecording) $("record").style.removeProperty("--level");
}

const canRecord = () => Boolean(navigator.mediaDevices?.getUserMedia && window.AudioWorkletNode);
const READY = canRecord()
  ? "Press Record and speak, or choose a file."
  : "Choose a file. To record, open this page over HTTPS or at localhost. Browsers do not let other pages use the microphone.";

const prompt = () => (card?.prompt ? $("prompt").value.trim() : "");

function showError(text, retry = null) {
  $("error-text").textContent = text;
  $("error").hidden = false;
  $("retry").hidden = !retry;
  $("retry").onclick = retry;
}

function reset() {
  $("error").hidden = true;
  $("result").hidden = $("transcript").hidden = $("copy").hidden = true;
  $("live").hidden = true;
  $("placeholder").hidden = false;
  $("final").replaceChildren();
  $("stable").textContent = $("partial").textContent = "";
  player.pause();
  result = null;
}

// Recording

function whyNoMicrophone(error) {
  const reasons = {
    NotAllowedError: "This page may not use the microphone. Allow it in the browser's settings for this site, then press Record again.",
    NotFoundError: "No microphone was found. Connect one, then press Record again.",
    NotReadableError: "The microphone cannot be used. Another program may be using it.",
  };
  return reasons[error.name] ?? `The microphone cannot be used: ${error.message}`;
}

async function record() {
  reset();
  enter("starting", "Waiting for the microphone…");
  const own = (recording = { chunks: [], samples: 0, status: "Recording", stop: null, live: null });
  try {
    own.stop = await openMicrophone(
      (chunk) => {
        own.chunks.push(chunk);
        own.samples += chunk.length;
        own.live?.send(chunk);
        showRecording(chunk, own.samples / RATE);
      },
      () => stop("The microphone was disconnected. Finishing…"),
      (paused) => showStatus(paused ? "The device paused the recording." : own.status),
    );
  } catch (error) {
    if (recording !== own) return; // canceled
    enter("idle", READY);
    showError(whyNoMicrophone(error));
    return;
  }
  if (recording !== own) {
    own.stop(); // canceled while the browser asked for permission
    return;
  }
  own.live = openLive(
    { words: card?.words ?? false, prompt: prompt() },
    (text) => recording === own && showLive(text),
    () => showStatus((own.status = "Recording. The text follows when you stop.")),
  );
  own.chunks.forEach((chunk) => own.live.send(chunk));
  enter("recording", own.status);
}

function showStatus(status) {
  if (document.body.dataset.state === "recording") $("status").textContent = status;
}

function showRecording(chunk, seconds) {
  if (document.body.dataset.state !== "recording") return;
  $("clock").textContent = clock(seconds);
  const power = chunk.reduce((sum, value) => sum + value * value, 0) / chunk.length;
  const decibels = 10 * Math.log10(power / 32768 ** 2 + 1e-10);
  $("record").style.setProperty("--level", Math.max(0, Math.min(1, 1 + decibels / 50)).toFixed(2));
}

function showLive({ final, stable, partial }) {
  $("placeholder").hidden = true;
  $("live").hidden = false;
  const box = $("final");
  // Screen readers announce added elements, so existing elements are not replaced.
  for (const text of final.slice(box.childElementCount)) {
    const span = document.createElement("span");
    span.textContent = `${text} `;
    box.append(span);
  }
  $("stable").textContent = stable;
  $("partial").textContent = partial;
  $("live").scrollTop = $("live").scrollHeight;
}

async function stop(status = "Finishing…") {
  if (document.body.dataset.state !== "recording") return;
  const own = recording;
  enter("finishing", status);
  await own.stop();
  if (recording !== own) return; // canceled
  last = { audio: wavFile(own.chunks), name: "recording.wav", recorded: true };
  const found = await own.live.end();
  if (recording !== own) return;
  recording = null;
  // Without a connection for live text, the recording is sent as a file.
  if (found) showResult(found);
  else await transcribeLast();
}

// Files

async function take(file) {
  if (!file || document.body.dataset.state !== "idle") return;
  last = { audio: file, name: file.name };
  await transcribeLast();
}

async function transcribeLast() {
  reset();
  running = new AbortController();
  enter("transcribing", `Transcribing ${last.name}`);
  const begun = performance.now();
  const timer = setInterval(() => ($("clock").textContent = clock((performance.now() - begun) / 1000)), 1000);
  try {
    const options = { model: card?.name ?? "", words: card?.words ?? false, prompt: prompt(), signal: running.signal };
    const found = await transcribe(last.audio, last.name, options);
    clearInterval(timer);
    showResult(found);
  } catch (error) {
    clearInterval(timer);
    enter("idle", READY);
    if (error.name !== "AbortError") report(error, transcribeLast);
  }
}

function report(error, retry) {
  if (!(error instanceof ServerError)) {
    console.error(error);
    showError(`The answer of the server cannot be read: ${error.message}`, retry);
  } else if (error.status === 401) {
    askForKey(retry);
  } else if (error.status === 429) {
    const when = error.retryAfterS ? `in ${error.retryAfterS} s` : "in a moment";
    showError(`The server is busy. Try again ${when}.`, retry);
  } else {
    // Another try helps only if the error is caused by the server and not by the file.
    showError(error.message, error.status === 0 || error.status >= 500 ? retry : null);
  }
}

function cancel() {
  running?.abort();
  recording?.live?.close();
  recording = null;
  reset();
  enter("idle", READY);
}

// The result

function showResult(found) {
  result = found;
  enter("idle", READY);
  $("live").hidden = true;
  $("placeholder").hidden = true;
  $("result").hidden = false;
  if (player.src) URL.revokeObjectURL(player.src);
  player.src = URL.createObjectURL(last.audio);
  $("player-error").hidden = true;
  player.hidden = false;
  const empty = !found.text;
  $("transcript").hidden = false;
  $("transcript").tabIndex = empty ? -1 : 0;
  $("copy").hidden = empty || !navigator.clipboard;
  document.querySelectorAll("[data-format]").forEach((button) => (button.disabled = empty));
  $("wav").disabled = false;
  $("wav").hidden = !last.recorded;
  if (empty) {
    $("transcript").textContent = "No speech was found.";
    $("transcript-hint").textContent = "";
  } else {
    transcript.show(found);
    const unit = found.words?.length ? "word" : "segment";
    $("transcript-hint").textContent = `Select a ${unit} to move the player there. With the keyboard: ← and → move, Space plays.`;
  }
  if (found.hotwords_left_out) {
    $("transcript-hint").textContent += ` Names that the model cannot use: ${found.hotwords_left_out.join(", ")}.`;
  }
}

async function download(format) {
  const contents = {
    wav: () => last.audio,
    txt: () => `${result.text}\n`,
    json: () => `${JSON.stringify(result, null, 2)}\n`,
    srt: () => subtitles("srt", result),
    vtt: () => subtitles("vtt", result),
  };
  try {
    const content = await contents[format]();
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([content]));
    link.download = `${last.name.replace(/\.[^.]*$/, "")}.${format}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  } catch (error) {
    report(error, () => download(format));
  }
}

async function copy() {
  try {
    await navigator.clipboard.writeText(result.text);
  } catch {
    showError("The browser did not allow copying. Download the text instead.");
    return;
  }
  $("copy").textContent = "Copied";
  setTimeout(() => ($("copy").textContent = "Copy text"), 1500);
}

// The model

async function loadCard() {
  try {
    card = await readCard();
  } catch (error) {
    report(error, loadCard);
    return;
  }
  $("model-name").textContent = card.name;
  $("model-name").title = card.name;
  $("model-name").hidden = false;
  $("prompt-field").hidden = !card.prompt;
  $("prompt-label").textContent = { hotwords: "Names and rare words to expect", previous_text: "Text before the recording" }[card.prompt];
  $("prompt-hint").hidden = card.prompt !== "hotwords";
  const whole = (value) => value.toLocaleString("en-US");
  fill(
    $("parts"),
    card.parts.map(({ part, kind, initialized_from, parameters }) => [part, kind, initialized_from, whole(parameters)]),
  );
  fill(
    $("scores"),
    card.scores.map(({ set, wer, interval_95, num_utterances }) => [
      set,
      `${wer.toFixed(2)} %`,
      interval_95 ? interval_95.map((bound) => bound.toFixed(2)).join(" – ") : "",
      num_utterances === null ? "" : whole(num_utterances),
    ]),
  );
  $("scores").hidden = !card.scores.length;
  $("no-scores").hidden = card.scores.length > 0;
  $("about").hidden = false;
}

function fill(table, rows) {
  const numbers = [...table.tHead.rows[0].cells].map((cell) => cell.className);
  const lines = rows.map((cells) => {
    const line = document.createElement("tr");
    cells.forEach((text, index) => {
      const cell = document.createElement(index ? "td" : "th");
      if (!index) cell.scope = "row";
      cell.className = numbers[index];
      cell.textContent = text;
      line.append(cell);
    });
    return line;
  });
  table.tBodies[0].replaceChildren(...lines);
}

function askForKey(retry) {
  $("key-form").hidden = false;
  $("key").value = "";
  $("key").focus();
  $("key-form").onsubmit = async (event) => {
    event.preventDefault();
    setKey($("key").value.trim());
    $("key-form").hidden = true;
    if (!card) await loadCard();
    if (card && retry !== loadCard && document.body.dataset.state === "idle") await retry();
  };
}

// Events

$("record").onclick = () => (document.body.dataset.state === "recording" ? stop() : record());
$("choose").onclick = () => $("file").click();
$("cancel").onclick = cancel;
$("copy").onclick = copy;
$("file").onchange = ({ target }) => {
  take(target.files[0]);
  target.value = ""; // Otherwise, choosing the same file again would not cause an event.
};
document.querySelectorAll("[data-format]").forEach((button) => {
  button.onclick = () => download(button.dataset.format);
});
player.onerror = () => {
  if (result === null) return;
  player.hidden = true;
  $("player-error").hidden = false;
};

const hasFile = (event) => event.dataTransfer?.types.includes("Files");
window.addEventListener("dragover", (event) => {
  if (!hasFile(event)) return;
  event.preventDefault();
  $("drop").hidden = document.body.dataset.state !== "idle";
});
window.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("drop").hidden = true;
});
window.addEventListener("drop", (event) => {
  $("drop").hidden = true;
  if (!hasFile(event)) return;
  event.preventDefault();
  take(event.dataTransfer.files[0]);
});
window.addEventListener("beforeunload", (event) => {
  if (document.body.dataset.state === "recording") event.preventDefault(); // The browser asks whether to leave.
});

enter("idle", READY);
loadCard();
