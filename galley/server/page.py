"""The server's own pages, each one file without anything from other sites."""

from __future__ import annotations

import html
import json

_FRAME = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto;
  padding: 0 1rem; color: #222; background: #fff }}
pre, textarea {{ font: 14px/1.4 ui-monospace, monospace; background: #f4f4f4; padding: .6rem;
  overflow: auto; white-space: pre-wrap }}
textarea, input {{ width: 100%; box-sizing: border-box; border: 1px solid #ccc }}
summary {{ cursor: pointer }}
code, b {{ font-family: ui-monospace, monospace }}
small {{ color: #666 }}
</style>
</head>
<body>
{body}
</body>
</html>
"""

_HOME = """<h1>Galley {version}</h1>
<p>Serves <b>{model}</b>. {links}</p>
{ask}
"""
_ASK = """<form id="ask">
<textarea id="text" rows="3" placeholder="Ask something"></textarea>
<input id="key" type="password" placeholder="API key, if the server wants one" autocomplete="off">
<button>Send</button>
</form>
<pre id="answer"></pre>
<h2>From a terminal</h2>
<pre id="curl"></pre>
<script>
const root = {root}, model = {model}, url = root + "/v1/chat/completions";
document.getElementById("curl").textContent =
  `curl ${{location.origin}}${{url}} -H "Content-Type: application/json" \\\\\\n` +
  `  -d '{{"messages": [{{"role": "user", "content": "Hello"}}]}}'`;
document.getElementById("ask").onsubmit = async event => {{
  event.preventDefault();
  const out = document.getElementById("answer"), headers = {{"Content-Type": "application/json"}};
  const key = document.getElementById("key").value;
  if (key) headers.Authorization = "Bearer " + key;
  const messages = [{{role: "user", content: document.getElementById("text").value}}];
  out.textContent = "";
  const reply = await fetch(url, {{method: "POST", headers,
    body: JSON.stringify({{model, messages, max_tokens: 512, stream: true}})}});
  if (!reply.ok) {{ out.textContent = await reply.text(); return; }}
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = "";;) {{
    const {{done, value}} = await reader.read();
    if (done) break;
    const lines = (rest + value).split("\\n");
    rest = lines.pop();
    for (const line of lines) {{
      if (!line.startsWith("data: {{")) continue;
      const event = JSON.parse(line.slice(6));
      out.textContent += event.error ? event.error.message
        : event.choices?.[0]?.delta?.content ?? "";
    }}
  }}
}};
</script>
"""

_DOCS = """<h1>HTTP API</h1>
<p>Described by <a href="{url}"><code>openapi.json</code></a>.</p>
<div id="routes">The list needs JavaScript.</div>
<script>
const add = (to, tag, text) => {{
  const element = to.appendChild(document.createElement(tag));
  if (text) element.textContent = text;
  return element;
}};
const named = (api, schema) => schema?.$ref
  ? schema.$ref.slice(2).split("/").reduce((at, key) => at[key], api) : schema;
const kind = schema => schema.$ref ? schema.$ref.split("/").pop()
  : schema.anyOf ? schema.anyOf.map(kind).join(" | ")
  : schema.enum ? schema.enum.map(v => JSON.stringify(v)).join(" | ")
  : schema.type === "array" && schema.items ? `array of ${{kind(schema.items)}}`
  : schema.type ?? "any";
fetch("{url}").then(reply => reply.json()).then(api => {{
  const root = document.getElementById("routes");
  root.textContent = "";
  for (const [path, methods] of Object.entries(api.paths))
    for (const [method, operation] of Object.entries(methods)) {{
      const part = add(root, "details");
      add(add(part, "summary"), "b", `${{method.toUpperCase()}} ${{path}}`);
      add(part, "p", operation.description ?? operation.summary);
      const body = operation.requestBody?.content?.["application/json"]?.schema;
      const options = body ? (body.anyOf ?? [body]) : [];
      for (const option of options) {{
        const schema = named(api, option), list = add(part, "ul");
        for (const [name, field] of Object.entries(schema?.properties ?? {{}})) {{
          const item = add(list, "li");
          add(item, "b", name);
          add(item, "small", ` ${{kind(field)}}`
            + ((schema.required ?? []).includes(name) ? ", required" : ""));
          if (field.description) add(item, "div", field.description);
        }}
      }}
      add(part, "p", "Answers: " + Object.keys(operation.responses).join(", "));
    }}
}});
</script>
"""


def _script(value: str) -> str:
    """A string as a literal in a script element."""
    return json.dumps(value).replace("<", "\\u003c")


def home_page(
    version: str, model: str, root: str, *, documented: bool, generates: bool, ui: bool
) -> str:
    """The page at /: the model, links, and a box to ask in."""
    links = ["/v1/models", "/health", "/metrics"]
    links = ["/docs", *links] if documented else links
    links = ["/ui", *links] if ui else links
    shown = " ".join(f'<a href="{html.escape(root)}{link}">{link}</a>' for link in links)
    ask = _ASK.format(root=_script(root), model=_script(model)) if generates else ""
    body = _HOME.format(version=version, model=html.escape(model), links=shown, ask=ask)
    return _FRAME.format(title="Galley", body=body)


def docs_page(url: str) -> str:
    """The page at /docs, drawn from the description at `url`."""
    return _FRAME.format(title="Galley: HTTP API", body=_DOCS.format(url=html.escape(url)))


def plain_page(title: str, text: str) -> str:
    return _FRAME.format(title=html.escape(title), body=f"<p>{html.escape(text)}</p>")
