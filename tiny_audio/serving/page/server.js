// Requests to the server that this page comes from.

/** A request that failed. `status` is the HTTP status; 0 if there was no response. */
export class ServerError extends Error {
  constructor(status, message, retryAfterS) {
    super(message);
    this.status = status;
    this.retryAfterS = retryAfterS;
  }
}

const PATIENCE_MS = 60_000; // After the end of a recording, the page waits at most this long for each message.
let key = ""; // Only in memory: a reload forgets it.
export const setKey = (value) => (key = value);

async function request(path, options = {}) {
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, "The server does not answer. Check that it runs and that you are connected to it.");
  }
  if (answer.ok) return answer;
  const message = await answer.json().then((body) => body.error.message).catch(() => answer.statusText);
  throw new ServerError(answer.status, message, Number(answer.headers.get("Retry-After")) || null);
}

/**
 * Return the model's `name`, `words` (whether it can give the times of words), `prompt` (how it uses a prompt), `parts`
 * and `scores`.
 */
export const readCard = async () => (await request("v1/card")).json();

/** Transcribe a file. Return its `text`, `duration`, `segments` and, if the model times words, `words`. */
export async function transcribe(audio, name, { model, words, prompt, signal }) {
  const form = new FormData();
  form.append("file", audio, name);
  form.append("model", model);
  form.append("response_format", "verbose_json");
  form.append("timestamp_granularities[]", "segment");
  if (words) form.append("timestamp_granularities[]", "word");
  if (prompt) form.append("prompt", prompt);
  return (await request("v1/audio/transcriptions", { method: "POST", body: form, signal })).json();
}

/** Return the segments of a transcript with their `words`. If the model does not time words, `words` are null. */
export function segmentsOf({ segments, words }) {
  const rest = words?.length ? [...words] : null;
  return segments.map(({ start, end, text }, index) => {
    const next = segments[index + 1]?.start ?? Infinity;
    const later = rest?.findIndex((word) => (word.start + word.end) / 2 >= next) ?? -1;
    return { start, end, text, words: rest && rest.splice(0, later < 0 ? rest.length : later) };
  });
}

/** Return a transcript as the text of a subtitle file. */
export async function subtitles(format, transcript) {
  const body = JSON.stringify({ segments: segmentsOf(transcript) });
  const headers = { "Content-Type": "application/json" };
  return (await request(`v1/subtitles/${format}`, { method: "POST", headers, body })).text();
}

/**
 * Open a connection that transcribes while audio arrives.
 *
 * @param {{words: boolean, prompt: string}} options whether to ask for the times of words, and the prompt
 * @param {(text: {final: string[], stable: string, partial: string}) => void} onText called when the text changes:
 *   final texts never change, the stable part changes rarely, and the partial part changes often
 * @param {() => void} onLost called if the connection fails
 * @returns {{send: (samples: Int16Array) => void, end: () => Promise<object | null>, close: () => void}} `end` gives the
 *   transcript as `transcribe` does, or null if the connection failed
 */
export function openLive({ words, prompt }, onText, onLost) {
  const url = new URL("v1/audio/live", document.baseURI);
  url.protocol = url.protocol.replace("http", "ws");
  if (words) url.searchParams.set("words", "true");
  if (prompt) url.searchParams.set("prompt", prompt);
  // Pages cannot set the headers of a WebSocket, so a second subprotocol carries the key. The server accepts the first.
  let socket;
  try {
    socket = new WebSocket(url, key ? ["tiny-audio", `openai-insecure-api-key.${key}`] : []);
  } catch {
    // The key has a character that a subprotocol cannot contain, or the browser's settings forbid the connection.
    setTimeout(onLost);
    return { send() {}, end: async () => null, close() {} };
  }
  const utterances = [];
  let early = []; // messages that are held until the server is ready; then null
  let leftOut; // names that the model cannot use
  let done = false;
  let finish;
  const finished = new Promise((resolve) => (finish = resolve));

  const show = (partial = { stable: "", text: "" }) =>
    onText({
      final: utterances.map(({ text }) => text),
      stable: partial.stable,
      partial: partial.text.slice(partial.stable.length),
    });
  const send = (message) => {
    if (early) early.push(message);
    else if (socket.readyState === WebSocket.OPEN) socket.send(message);
  };

  let timer = null;
  const expectMessage = () => {
    clearTimeout(timer);
    timer = setTimeout(() => socket.close(), PATIENCE_MS);
  };

  socket.onmessage = ({ data }) => {
    const message = JSON.parse(data);
    if (timer) expectMessage();
    if (message.type === "ready") {
      leftOut = message.hotwords_left_out;
      const waiting = early;
      early = null;
      waiting.forEach(send);
    } else if (message.type === "partial") {
      show(message);
    } else if (message.type === "final") {
      utterances.push(message);
      show();
    } else if (message.type === "done") {
      done = true;
      finish(transcriptOf(utterances, message.duration_s, words, leftOut));
      socket.close();
    } else if (message.type === "error") {
      socket.close();
    }
  };
  // If the browser does not allow the connection, there is an error event, but no close event.
  socket.onerror = socket.onclose = () => {
    clearTimeout(timer);
    early = [];
    finish(null);
    if (!done) onLost();
    done = true;
  };
  return {
    send,
    end: () => {
      if (early) {
        socket.close(); // The server did not become ready during the whole recording.
        finish(null);
      } else {
        send('{"type":"end"}');
        expectMessage();
      }
      return finished;
    },
    close: () => socket.close(),
  };
}

function transcriptOf(utterances, duration, words, leftOut) {
  const spoken = utterances.filter(({ text }) => text);
  return {
    text: spoken.map(({ text }) => text).join(" "),
    duration,
    segments: spoken.map(({ start_s, end_s, text }, id) => ({ id, start: start_s, end: end_s, text })),
    ...(words && {
      words: spoken.flatMap((utterance) =>
        (utterance.words ?? []).map(({ word, start_s, end_s }) => ({ word, start: start_s, end: end_s })),
      ),
    }),
    ...(leftOut && { hotwords_left_out: leftOut }),
  };
}
