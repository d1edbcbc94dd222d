// The repository's Markdown files as pages of the site. The files are written for readers of the repository; links to other
// files of it become links to their pages, and a link that leads nowhere is an error.
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { dirname, extname, join, posix, relative, sep } from "node:path";
import { fromMarkdown } from "mdast-util-from-markdown";
import { visit } from "unist-util-visit";
import { publicPackages } from "../../../tools/release/stage.mjs";

/** The Markdown files that are pages: those beside the repository's README and beside each package's. */
export function markdownFiles(root: string): string[] {
  const folders = ["", ...publicPackages(root).map(({ dir }) => relative(root, dir).replaceAll(sep, "/"))];
  return folders.flatMap((folder) =>
    readdirSync(join(root, folder))
      .filter((name) => name.endsWith(".md"))
      .map((name) => posix.join(folder, name)),
  );
}

/** The page of a file of the repository: a README is the index of its folder, code has a page that shows it. */
export function pageOf(file: string): string {
  if (!file.endsWith(".md")) return `source/${file}.md`;
  return posix.join(posix.dirname(file), posix.basename(file).toLowerCase().replace("readme.md", "index.md"));
}

/** The file of the repository that a link in `file` leads to; a folder's is its README. @throws Error where there is none */
function fileBehind(root: string, file: string, path: string): string {
  const target = posix.join(posix.dirname(file), decodeURI(path));
  const exists = !target.startsWith("..") && existsSync(join(root, target));
  if (!exists) throw new Error(`${file} links to ${path}, which does not exist`);
  if (!statSync(join(root, target)).isDirectory()) return target;
  const readme = posix.join(target, "README.md");
  if (!existsSync(join(root, readme))) throw new Error(`${file} links to ${path}, a folder without a README`);
  return readme;
}

/** A Markdown file with its links to files made links to pages, and those files. @throws Error for each dead link, all at once */
export function relink(root: string, file: string): { markdown: string; files: string[] } {
  let markdown = readFileSync(join(root, file), "utf8");
  const [files, dead]: [string[], string[]] = [[], []];
  const edits: { start: number; end: number; text: string }[] = [];
  visit(fromMarkdown(markdown), ["link", "image", "definition"], (node) => {
    if (!("url" in node) || /^([a-z][a-z+.-]*:|\/\/|#)/i.test(node.url)) return;
    const [path, fragment] = node.url.split("#");
    try {
      const target = fileBehind(root, file, path);
      files.push(target);
      const page = posix.relative(posix.dirname(pageOf(file)), pageOf(target));
      const [start, end] = [node.position?.start.offset ?? 0, node.position?.end.offset ?? 0];
      const url = fragment === undefined ? `./${page}` : `./${page}#${fragment}`;
      edits.push({ start, end, text: replaceLast(markdown.slice(start, end), node.url, url) });
    } catch (error) {
      dead.push((error as Error).message);
    }
  });
  if (dead.length > 0) throw new Error(dead.join("\n"));
  for (const { start, end, text } of edits.reverse()) {
    markdown = markdown.slice(0, start) + text + markdown.slice(end);
  }
  return { markdown, files };
}

/** In a link the address comes last: after its text, which may hold it too. */
function replaceLast(text: string, part: string, replacement: string): string {
  const index = text.lastIndexOf(part);
  return text.slice(0, index) + replacement + text.slice(index + part.length);
}

/** A page that shows a file of code. */
function sourcePage(root: string, file: string): string {
  const code = readFileSync(join(root, file), "utf8");
  const fence = "`".repeat(Math.max(3, ...[...code.matchAll(/`+/g)].map(([run]) => run.length + 1)));
  return `---\noutline: false\n---\n\n# ${posix.basename(file)}\n\n\`${file}\`\n\n${fence}${extname(file).slice(1)}\n${code}\n${fence}\n`;
}

/** Writes the pages of the repository in `root` into the folder `target`. @throws Error for each dead link, all at once */
export function writePages(root: string, target: string): void {
  const write = (file: string, text: string) => {
    const page = join(target, pageOf(file));
    mkdirSync(dirname(page), { recursive: true });
    writeFileSync(page, text);
  };
  const pages = markdownFiles(root);
  const sources = new Set<string>();
  const dead: string[] = [];
  for (const file of pages) {
    try {
      const { markdown, files } = relink(root, file);
      write(file, markdown);
      for (const linked of files) if (!pages.includes(linked)) sources.add(linked);
    } catch (error) {
      dead.push((error as Error).message);
    }
  }
  if (dead.length > 0) throw new Error(dead.join("\n"));
  for (const file of sources) write(file, sourcePage(root, file));
}
