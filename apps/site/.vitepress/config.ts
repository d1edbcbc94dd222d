// `vitepress build` makes the whole site: it writes the pages, builds them, and fails where a link leads nowhere.
import { readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { type DefaultTheme, defineConfig } from "vitepress";
import { publicPackages, root } from "../../../tools/release/stage.mjs";
import { writeApi } from "../src/api.js";
import { deadLinks } from "../src/check.js";
import { markdownFiles, pageOf, writePages } from "../src/pages.js";

const pages = fileURLToPath(new URL("../dist/pages", import.meta.url));

/** The pages of a package: its README first. */
function packageItems(): DefaultTheme.SidebarItem[] {
  const files = markdownFiles(root);
  return publicPackages().map(({ name, dir }) => {
    const folder = dir.slice(root.length);
    const others = files.filter((file) => file.startsWith(`${folder}/`) && !file.endsWith("README.md"));
    return {
      text: name,
      link: `/${folder}/`,
      collapsed: true,
      items: others.map((file) => ({ text: titleOf(file), link: `/${pageOf(file)}` })),
    };
  });
}

/** The first heading of a page. */
const titleOf = (file: string) => readFileSync(join(root, file), "utf8").match(/^# (.+)$/m)?.[1] ?? file;

export default async () => {
  rmSync(pages, { recursive: true, force: true });
  writePages(root, pages);
  await writeApi(root, pages);
  const api = JSON.parse(readFileSync(join(pages, "api", "typedoc-sidebar.json"), "utf8"));
  return defineConfig({
    title: "moba-js",
    description: "Long-context attention for TypeScript: Mixture of Block Attention",
    srcDir: "dist/pages",
    outDir: "dist/site",
    cacheDir: "dist/cache",
    vite: { build: { chunkSizeWarningLimit: 2000 } }, // in KB: the API of a package is one page
    markdown: { attrs: { disable: true } },
    themeConfig: {
      search: { provider: "local" },
      outline: [2, 3],
      nav: [
        { text: "Architecture", link: "/architecture" },
        { text: "API", link: "/api/" },
      ],
      sidebar: [
        {
          items: [
            { text: "moba-js", link: "/" },
            { text: "Architecture", link: "/architecture" },
            { text: "Contributing", link: "/contributing" },
          ],
        },
        { text: "Packages", items: packageItems() },
        { text: "API", items: api },
      ],
    },
    async buildEnd({ outDir }) {
      const dead = await deadLinks(outDir);
      if (dead.length > 0) throw new Error(`dead links:\n${dead.join("\n")}`);
    },
  });
};
