import { relative } from "node:path";
import { LinkChecker, LinkState } from "linkinator";

/** The links inside the built site in `folder` that lead nowhere, files and fragments: `page: link`. */
export async function deadLinks(folder: string): Promise<string[]> {
  const { links } = await new LinkChecker().check({
    path: folder,
    recurse: true,
    checkFragments: true,
    concurrency: 8,
    linksToSkip: ["^https?://(?!localhost[:/])"], // of others: they come and go without a change here
  });
  const dead = links
    .filter(({ state }) => state === LinkState.BROKEN)
    .map(
      ({ url, parent }) => `${relative(folder, parent ?? folder) || "index.html"}: ${relative(folder, url)}`,
    );
  return [...new Set(dead)];
}
