import { escapeText } from "./chart.js";

const STYLE = `
:root{color-scheme:light dark;--ink:#24292f;--soft:#57606a;--line:#d0d7de;--paper:#fff;--good:#1a7f37;--bad:#b42318}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9198a1;--line:#30363d;--paper:#0d1117;--good:#3fb950;--bad:#ff7b72}}
body{font:16px/1.55 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:60rem;margin:2rem auto;padding:0 1.25rem}
h1{font-size:1.7rem;line-height:1.25}h2{font-size:1.25rem;margin-top:2.5rem;border-bottom:1px solid var(--line);padding-bottom:.3rem}
p{max-width:48rem}.note{color:var(--soft)}figure{margin:1rem 0;overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem;margin:1rem 0;display:block;overflow-x:auto}
th,td{padding:.3rem .7rem;border-bottom:1px solid var(--line);text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
th{font-weight:600;white-space:normal;vertical-align:bottom}th:first-child,td:first-child{text-align:left}
td.text{text-align:left;white-space:normal}.good{color:var(--good)}.bad{color:var(--bad)}code{font-size:.9em}`;

/** A cell of a table: text, or text that reads as good or bad news. */
export type Cell = string | { readonly text: string; readonly mood: "good" | "bad" };

/** An HTML table. */
export function table(head: readonly string[], rows: readonly (readonly Cell[])[]): string {
  const cell = (content: Cell) =>
    typeof content === "string"
      ? `<td${/^[\d.\s±+−∞-]/.test(content) ? "" : ' class="text"'}>${escapeText(content)}</td>`
      : `<td class="text ${content.mood}">${escapeText(content.text)}</td>`;
  const header = head.map((text) => `<th>${escapeText(text)}</th>`).join("");
  const body = rows.map((row) => `<tr>${row.map(cell).join("")}</tr>`).join("\n");
  return `<table><thead><tr>${header}</tr></thead><tbody>\n${body}\n</tbody></table>`;
}

/** A paragraph of plain text. */
export function paragraph(text: string): string {
  return `<p>${escapeText(text)}</p>`;
}

/** A self-contained HTML page: no script, no font, no request. */
export function htmlPage(title: string, body: string): string {
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escapeText(title)}</title>
<style>${STYLE}</style>
</head>
<body>
<h1>${escapeText(title)}</h1>
${body}
</body>
</html>
`;
}
