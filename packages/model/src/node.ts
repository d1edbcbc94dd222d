export {
  listCheckpoints,
  loadConfig,
  loadModel,
  loadMoments,
  loadRunState,
  type RunState,
  type SaveOptions,
  saveCheckpoint,
  saveModel,
} from "./node/checkpoint.js";
export { parquetSource } from "./node/parquet.js";
export { type RunMetrics, type RunOptions, runTraining } from "./node/run.js";
export { holdOut, jsonlSource, readLines, textSource } from "./node/sources.js";
export { loadTokenizer } from "./node/tokenizer-file.js";
