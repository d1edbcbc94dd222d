export { type BinomialIntervalOptions, binomialInterval } from "./binomial.js";
export {
  type ChartAxis,
  type ChartOptions,
  type ChartPoint,
  type ChartSeries,
  chart,
} from "./chart.js";
export {
  type ConvolutionGainOptions,
  type ConvolutionOptions,
  convolutionGain,
  convolveKeys,
  linearConvolution,
  linearConvolutionGain,
  siluParts,
  transformKeys,
} from "./convolution.js";
export {
  type CostCoefficients,
  type CostMeasurement,
  countDenseWork,
  countWork,
  fitCost,
  type MobaConfiguration,
  NOMINAL_COST,
  predictSeconds,
  type Work,
  type WorkOptions,
} from "./cost.js";
export {
  type EstimateOptions,
  estimateSnr,
  type PackedView,
  type SampleOptions,
  type SnrEstimate,
} from "./estimate.js";
export { type HitOptions, hitProbability, missProbability } from "./hit.js";
export {
  blockSizeForRecall,
  headDimForRecall,
  type RecallOptions,
  separationForRecall,
  slotsForRecall,
  snrForRecall,
} from "./inverse.js";
export {
  type EffectiveSeparationOptions,
  effectiveSeparation,
  meetsTopKCondition,
  pairwiseFailure,
  requiredSnr,
  type SnrOptions,
  snr,
  type TopKOptions,
} from "./model.js";
export {
  predict,
  type SimulationOptions,
  type SimulationResult,
  simulate,
  simulateStream,
} from "./monte-carlo.js";
export { logNormalCdf, normalCdf, normalQuantile } from "./normal.js";
export {
  type Plan,
  type PlanEntry,
  type PlanOptions,
  type PlanSamples,
  plan,
  type WidthSeparation,
} from "./plan.js";
export { planChart, planPage, planTable } from "./plan-page.js";
export { Random } from "./random.js";
export { reproductionReport } from "./report.js";
export {
  type AblationRow,
  type AccuracyRow,
  type AssumptionOutcome,
  type AssumptionRow,
  type ClusteringRow,
  type ConvolutionRow,
  type FixedComputeRow,
  type LawRow,
  type LawSlopes,
  type LinearConvolutionRow,
  type ReproduceOptions,
  type Reproduction,
  reproduce,
  type SignalKind,
} from "./reproduce.js";
export { confidenceInterval, type Estimate } from "./statistics.js";
export {
  commonMean,
  correlatedNoise,
  createWorld,
  heavyTails,
  independentNoise,
  type KeyNoise,
  repeatedWords,
  type Scene,
  topicNoise,
  unequalNorms,
  type World,
  type WorldOptions,
  type WorldShape,
} from "./worlds.js";
