// One request as a curl command and as a Python program, for a shell and an interpreter elsewhere.

const KEY_VARIABLE = "OPENAI_API_KEY";
const OPENAI_ARGUMENTS = ["model", "messages", "prompt", "temperature", "max_tokens"];

/** JSON without characters that a terminal acts on or a reader cannot see. */
function json(value, indent) {
  const hidden = /[\u007f-\u009f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;
  const escape = (found) => `\\u${found.charCodeAt(0).toString(16).padStart(4, "0")}`;
  return JSON.stringify(value, null, indent).replace(hidden, escape);
}

/** For POSIX shells. path: below base, such as chat/completions. */
export function asCurl(base, path, body, withKey) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const lines = [`curl -sS ${quoted(`${base}/${path}`)}`, "-H 'Content-Type: application/json'"];
  if (withKey) lines.push(`-H "Authorization: Bearer $${KEY_VARIABLE}"`);
  lines.push(`--data-raw ${quoted(json(body, 2))}`);
  return `${lines.join(" \\\n  ")}\n`;
}

/** A program with the openai client; what the client has no argument for goes into extra_body. */
export function asPython(base, path, body, withKey) {
  const chat = path === "chat/completions";
  const lines = OPENAI_ARGUMENTS.filter((name) => name in body).map(
    (name) => `    ${name}=${python(body[name], 4)},`,
  );
  const extra = Object.fromEntries(Object.entries(body).filter(([name]) => !OPENAI_ARGUMENTS.includes(name)));
  if (Object.keys(extra).length) lines.push(`    extra_body=${python(extra, 4)},`);
  return [
    ...(withKey ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${python(base)}, api_key=${withKey ? `os.environ["${KEY_VARIABLE}"]` : '"none"'})`,
    `reply = client.${chat ? "chat.completions" : "completions"}.create(`,
    ...lines,
    ")",
    `print(reply.choices[0].${chat ? "message.content" : "text"})`,
    "",
  ].join("\n");
}

/** A JSON value as a Python literal, at this indentation; short ones on one line. */
function python(value, indent = 0) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value !== "object") return json(value);
  const isList = Array.isArray(value);
  const [open, close] = isList ? "[]" : "{}";
  const inner = indent + 4;
  const items = isList
    ? value.map((item) => python(item, inner))
    : Object.entries(value).map(([name, item]) => `${json(name)}: ${python(item, inner)}`);
  const line = `${open}${items.join(", ")}${close}`;
  if (!line.includes("\n") && line.length + indent < 80) return line;
  const pad = " ".repeat(inner);
  return `${open}\n${items.map((item) => `${pad}${item},\n`).join("")}${" ".repeat(indent)}${close}`;
}

/** Put text on the clipboard; without access to it (plain http from another machine), show it for copying. */
export async function copy(text, dialog) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = dialog.querySelector("textarea");
    field.value = text;
    dialog.showModal();
    field.select();
    return false;
  }
}
