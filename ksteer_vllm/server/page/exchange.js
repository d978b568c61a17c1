// What is asked of the server: the body of a request for one side of a turn, and its answer as it streams in.

import { ServerError, stream } from "./api.js";

const UNLIMITED_COMPLETION = 128;
/** Tokens of a plain completion without a limit, of which vLLM would write 16. */

const NO_TEMPLATE = /chat.?template/i;

/** The routes: how a conversation is written down and how a chunk is read. */
const ROUTES = {
  chat: {
    path: "chat/completions",
    body: (history, prompt) => ({
      messages: [
        ...history.flatMap((turn) => [
          { role: "user", content: turn.prompt },
          { role: "assistant", content: turn.text },
        ]),
        { role: "user", content: prompt },
      ],
    }),
    tokens: { logprobs: true },
    read: (choice) => ({
      text: choice.delta?.content ?? "",
      reasoning: choice.delta?.reasoning ?? choice.delta?.reasoning_content ?? "",
      tokens: choice.logprobs?.content?.map((entry) => entry.token) ?? [],
    }),
  },
  completion: {
    path: "completions",
    body: (history, prompt) => ({
      prompt: [...history.map((turn) => `${turn.prompt}${turn.text}\n`), prompt].join(""),
    }),
    tokens: { logprobs: 0 },
    read: (choice) => ({ text: choice.text ?? "", reasoning: "", tokens: choice.logprobs?.tokens ?? [] }),
  },
};

/** Which of them this server supports: "chat" until it says that its model has no chat template. */
export const mode = { name: "chat", reason: "" };

/** A request: {path, body}. ksteer: the spec, or false for no steering even if the server has a default. */
function requestOf(model, sampling, history, prompt, ksteer) {
  const route = ROUTES[mode.name];
  const limit = mode.name === "completion" ? { max_tokens: UNLIMITED_COMPLETION } : {};
  return { path: route.path, body: { model, ...route.body(history, prompt), ...limit, ...sampling, ksteer } };
}

/** Ask, and call onText(text, reasoning) as the answer comes in.
 *
 *  ask: {model, sampling, history, prompt, ksteer, report}. Returns {request, tokens, report, finish}: the
 *  request as it could be sent again without streaming, the texts of the generated tokens (only with a
 *  report), the report or null, and the finish reason. Throws ServerError, or AbortError when stopped. */
export async function exchange(ask, signal, onText) {
  const request = requestOf(ask.model, ask.sampling, ask.history, ask.prompt, ask.ksteer);
  const route = ROUTES[mode.name];
  const result = { request, tokens: [], report: null, finish: null };
  const body = { ...request.body, stream: true };
  if (ask.report && ask.ksteer) Object.assign(body, route.tokens, { ksteer: { ...ask.ksteer, report: true } });
  ask.onRequest?.(request);
  try {
    for await (const chunk of stream(request.path, body, signal)) {
      if (chunk.ksteer) result.report = chunk.ksteer.choices?.[0] ?? null;
      for (const choice of chunk.choices ?? []) {
        const { text, reasoning, tokens } = route.read(choice);
        for (const token of tokens) result.tokens.push(token);
        result.finish = choice.finish_reason ?? result.finish;
        if (text || reasoning) onText(text, reasoning);
      }
    }
  } catch (error) {
    const unusable = error instanceof ServerError && error.status === 400 && NO_TEMPLATE.test(error.message);
    if (!unusable || route !== ROUTES.chat) throw error;
    mode.name = "completion";
    mode.reason = error.message;
    return exchange(ask, signal, onText);
  }
  return result;
}
