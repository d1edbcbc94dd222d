import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { deadLinks } from "../src/check.js";
import { writePages } from "../src/pages.js";

const temp = mkdtempSync(join(tmpdir(), "moba-js-site-"));
afterAll(() => rmSync(temp, { recursive: true, force: true }));

/** A folder with these files. */
function folder(files: Record<string, string>): string {
  const root = mkdtempSync(join(temp, "folder-"));
  for (const [name, text] of Object.entries(files)) {
    mkdirSync(dirname(join(root, name)), { recursive: true });
    writeFileSync(join(root, name), text);
  }
  return root;
}

const repository = {
  "README.md":
    "# All\n\n[a](packages/a) [code](packages/a/src/x.ts) [web](https://example.org) [here](#all)\n",
  "packages/a/package.json": JSON.stringify({ name: "a", version: "1.0.0" }),
  "packages/a/README.md":
    "# a\n\n[NOTES.md](NOTES.md#found) and [all](../../README.md)\n\n[below]: NOTES.md\n",
  "packages/a/NOTES.md": "# Notes\n\n`[not](a-link.md)`\n\n```md\n[nor](this.md)\n```\n",
  "apps/b/package.json": JSON.stringify({ name: "b", version: "1.0.0", private: true }),
  "packages/a/src/x.ts": "export const x = `1`;\n",
};

describe("the pages of a repository", () => {
  it("link to each other where its files do, and show the code that they link to", () => {
    const [root, target] = [folder(repository), folder({})];
    writePages(root, target);
    const page = (name: string) => readFileSync(join(target, name), "utf8");
    expect(page("index.md")).toBe(
      "# All\n\n[a](./packages/a/index.md) [code](./source/packages/a/src/x.ts.md) [web](https://example.org) [here](#all)\n",
    );
    expect(page("packages/a/index.md")).toBe(
      "# a\n\n[NOTES.md](./notes.md#found) and [all](./../../index.md)\n\n[below]: ./notes.md\n",
    );
    expect(page("packages/a/notes.md")).toBe(repository["packages/a/NOTES.md"]);
    expect(page("source/packages/a/src/x.ts.md")).toContain("```ts\nexport const x = `1`;\n");
  });

  it("are not made where a link leads nowhere: every one is named", () => {
    const broken = {
      ...repository,
      "README.md": "[gone](packages/b) [src](packages/a/src) [out](../x.md)\n",
      "packages/a/NOTES.md": "[typo](READ-ME.md#x)\n",
    };
    const dead = [
      "README.md links to packages/b, which does not exist",
      "README.md links to packages/a/src, a folder without a README",
      "README.md links to ../x.md, which does not exist",
      "packages/a/NOTES.md links to READ-ME.md, which does not exist",
    ];
    expect(() => writePages(folder(broken), folder({}))).toThrow(dead.join("\n"));
  });
});

describe("the links of a built site", () => {
  const index = '<a href="./a.html#there">a</a> <a href="https://example.org/gone">web</a>';

  it("may lead to pages and to fragments that there are", async () => {
    const site = folder({ "index.html": index, "a.html": '<h1 id="there">A</h1><a href="/">up</a>' });
    expect(await deadLinks(site)).toEqual([]);
  });

  it("may not lead to others", async () => {
    const site = folder({ "index.html": index, "a.html": '<h1 id="here">A</h1><a href="./b.html">b</a>' });
    expect(await deadLinks(site)).toEqual(["index.html: a.html#there", "a.html: b.html"]);
  });
});
