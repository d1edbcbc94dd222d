import { formatMatrix, runConformance } from "@moba-js/conformance";
import { describe, expect, it } from "vitest";
import { BUGS } from "./bugs.js";

const seed = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 31));
console.log(`broken backends: seed ${seed}`);

describe("the suite finds", () => {
  it("at least 25 classes of bugs", () => {
    expect(Object.keys(BUGS).length).toBeGreaterThanOrEqual(25);
  });

  it.each(Object.entries(BUGS))("%s", async (_, { backend, group, check, title, dtype = "f32", options }) => {
    const report = await runConformance(backend(), { seed, only: [group], dtypes: [dtype], ...options });
    const failures = report.results.filter(({ status }) => status === "failed");
    const found = failures.filter((result) => result.check === check && result.title.includes(title ?? ""));
    expect(found.length, formatMatrix(report)).toBeGreaterThan(0);
    for (const result of found) expect(result).toMatchObject({ group, dtype });
  });
});
