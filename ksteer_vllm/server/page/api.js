// Requests to the server this page came from. Addresses are relative: /prefix/ksteer/ asks /prefix/v1/.

const KEY = "ksteer-api-key";

export const apiBase = new URL("../v1", document.baseURI).href;

/** The API key, kept for this tab only. */
export const apiKey = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (key) => (key ? sessionStorage.setItem(KEY, key) : sessionStorage.removeItem(KEY)),
};

/** What the server answered instead of a result. status: of HTTP; 0: no answer, or an error in a stream. */
export class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

function headers(body) {
  const found = body === undefined ? {} : { "Content-Type": "application/json" };
  if (apiKey.get()) found.Authorization = `Bearer ${apiKey.get()}`;
  return found;
}

/** The message of an error body of vLLM, in any of its shapes. */
function messageOf(value, fallback) {
  const error = value?.error ?? value?.detail ?? value?.message;
  if (typeof error === "string") return error;
  return error?.message ?? (error ? JSON.stringify(error) : fallback);
}

async function request(path, body, signal) {
  let response;
  try {
    response = await fetch(`${apiBase}/${path}`, {
      method: body === undefined ? "GET" : "POST",
      headers: headers(body),
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server did not respond.", 0);
  }
  if (response.ok) return response;
  const text = await response.text();
  const fallback = text.slice(0, 2000) || `HTTP ${response.status} ${response.statusText}`;
  let value = null;
  try {
    value = JSON.parse(text);
  } catch {
    // not JSON: a proxy's page, shown as it is
  }
  throw new ServerError(messageOf(value, fallback), response.status);
}

export const getJson = async (path) => (await request(path)).json();

/** The chunks of a streamed answer, as objects. Throws ServerError, also for an error in mid-stream. */
export async function* stream(path, body, signal) {
  const response = await request(path, body, signal);
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(messageOf(chunk, data), 0);
    yield chunk;
  }
}

function broken(error) {
  throw error.name === "AbortError" ? error : new ServerError("The connection was lost.", 0);
}

/** The data of server-sent events, however the network splits the bytes. The caller stops at the last event:
 *  throws ServerError if the bytes end before that. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch(broken);
      if (done) broken(new Error("ended early"));
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) yield line.slice(5).trim();
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
