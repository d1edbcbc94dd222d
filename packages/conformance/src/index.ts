export {
  type ConformanceReport,
  type ConformanceResult,
  formatMatrix,
  GROUPS,
  type Group,
} from "./report.js";
export { type ConformanceOptions, runConformance } from "./suite.js";
