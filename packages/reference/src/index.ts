export { ReferenceBackend } from "./backend.js";
export type { BlockRouting, Layout } from "./layout.js";
export * from "./oracle/attention.js";
export * from "./oracle/backward.js";
export * from "./oracle/centroids.js";
export * from "./oracle/key-conv.js";
export { type RouteInputs, routeBlocks, selectTop } from "./oracle/route.js";
export { attendSlots, attendSlotsBackward } from "./paths/slot-plan.js";
export { attendTwoStreams } from "./paths/two-streams.js";
