// attention-backward.wgsl in registers, for subgroups that are wide enough. A group of LANES neighbouring threads has four keys, and of
// them, of their values and of their gradients each thread two groups of four channels: `near` and `far`, by the channel a vector of the
// four keys. Rows of queries pass by two at a time, sums over channels and over a subgroup's keys go from thread to thread, and what
// a row gets from all keys is added up in workgroup memory and goes into its slot once.
//
// Of the two rows a thread finishes the scores of one, `mine`: half of a group's threads one of them, half the other. Its partner sends
// what it has of that row, so that nothing has to be selected. Which row and which channels come first changes from group to group,
// so that sums over groups go likewise.

const KEYS = 4u * THREADS / LANES;
const ROW = 2u * LANES; // groups of four channels in workgroup memory
const ROWS = THREADS / ROW; // rows at a time: each thread fetches four channels of one
const HALF = LANES / 2u;
const GROUPS = SUBGROUP / LANES; // of a subgroup

const LOG2_E = 1.4426950408889634;

var<workgroup> queries: array<vec4<f32>, THREADS>;
var<workgroup> gradients: array<vec4<f32>, THREADS>;
var<workgroup> statsOf: array<vec2<f32>, ROWS>;
var<workgroup> sumsOf: array<vec4<f32>, SUBGROUP_COUNT * THREADS>; // of each subgroup's keys, for each row

// Where a thread is: its place in the group, its group, its channels, and which of two rows is its own.
struct Place {
  group: u32,
  near: u32,
  far: u32,
  mine: u32,
}

fn placeOf(thread: u32) -> Place {
  let lane = thread % LANES;
  let group = thread / LANES;
  let near = select(lane, lane + LANES * ((group >> 1u) & 1u), GROUPS >= 4u);
  let mine = lane / HALF + select(0u, group, GROUPS >= 2u);
  return Place(group, near, near ^ LANES, mine & 1u);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let index = group_index(group);
  if (index >= p.groups) { return; }
  let item = itemAt(index);
  if (!item.exists) { return; }
  var source = item.source;
  let sequence = sequenceOf(item.block, 4u);
  let blockKey = (item.block - sequence.firstBlock) * p.blockSize;
  let blockEnd = min(blockKey + p.blockSize, sequence.keys);
  let place = placeOf(thread);
  let keyHead = (sequence.key * p.kvHeads + p.firstHead + item.head) * p.d;
  var touched = 0;
  for (var firstKey = blockKey; firstKey < blockEnd; firstKey += KEYS) {
    let endKey = min(firstKey + KEYS, blockEnd);
    storageBarrier(); // what other threads added to slots
    workgroupBarrier();
    if (thread == 0u) { atomicStore(&nonFinite, 0u); }
    workgroupBarrier();
    var k: array<vec4<f32>, 8>;
    var v: array<vec4<f32>, 8>;
    var dk: array<vec4<f32>, 8>;
    var dv: array<vec4<f32>, 8>;
    @unroll for (var e = 0u; e < 4u; e++) {
      let key = firstKey + 4u * place.group + e;
      let row = keyHead + min(key, endKey - 1u) * p.kvHeads * p.d;
      let isKey = key < endKey;
      let kNear = select(vec4<f32>(), k_row(row, 4u * place.near), isKey);
      let kFar = select(vec4<f32>(), k_row(row, 4u * place.far), isKey);
      let vNear = select(vec4<f32>(), v_row(row, 4u * place.near), isKey);
      let vFar = select(vec4<f32>(), v_row(row, 4u * place.far), isKey);
      noteNonFinite(kNear);
      noteNonFinite(kFar);
      @unroll for (var n = 0u; n < 4u; n++) {
        k[n][e] = kNear[n];
        k[4u + n][e] = kFar[n];
        v[n][e] = vNear[n];
        v[4u + n][e] = vFar[n];
      }
    }
    @unroll for (var n = 0u; n < 8u; n++) {
      dk[n] = vec4<f32>();
      dv[n] = vec4<f32>();
    }
    for (var turn = select(1u, 0u, item.own); turn < select(1u, 2u, LISTED); turn++) {
      var rows = source;
      if (turn == 0u) {
        rows = rowsOfSequence(sequence, item, firstKey, endKey, touched);
        touched = max(touched, rows.end);
      }
      passQueries(thread, sequence, item.head, item.block, rows, firstKey, endKey, &k, &v, &dk, &dv);
    }
    source.touched = source.end;
    @unroll for (var e = 0u; e < 4u; e++) {
      let key = firstKey + 4u * place.group + e;
      let at = (item.piece * p.blockSize + key - blockKey) * (2u * DQ);
      if (key < endKey && place.near < DQ) {
        parts[at + place.near] = p.scale * vec4<f32>(dk[0][e], dk[1][e], dk[2][e], dk[3][e]);
        parts[at + DQ + place.near] = vec4<f32>(dv[0][e], dv[1][e], dv[2][e], dv[3][e]);
      }
      if (key < endKey && place.far < DQ) {
        parts[at + place.far] = p.scale * vec4<f32>(dk[4][e], dk[5][e], dk[6][e], dk[7][e]);
        parts[at + DQ + place.far] = vec4<f32>(dv[4][e], dv[5][e], dv[6][e], dv[7][e]);
      }
    }
  }
}

// dv += p dOut, dk += ds q and each slot += ds k over the rows of a source.
fn passQueries(
  thread: u32, sequence: Sequence, head: u32, block: u32, source: Source, firstKey: u32, endKey: u32,
  k: ptr<function, array<vec4<f32>, 8>>, v: ptr<function, array<vec4<f32>, 8>>,
  dk: ptr<function, array<vec4<f32>, 8>>, dv: ptr<function, array<vec4<f32>, 8>>,
) {
  let place = placeOf(thread);
  // Key e of the thread is seen by rows low[e] … high[e] − 1; every key by those from allFirst to allEnd − 1.
  var low: vec4<i32>;
  var high: vec4<i32>;
  @unroll for (var e = 0u; e < 4u; e++) {
    let key = firstKey + 4u * place.group + e;
    let rows = rowsThatSee(sequence, source, key);
    low[e] = rows.x;
    high[e] = select(rows.x, rows.y, key < endKey);
  }
  let allFirst = rowsThatSee(sequence, source, endKey - 1u).x;
  let allEnd = select(allFirst, rowsThatSee(sequence, source, firstKey).y, endKey == firstKey + KEYS);
  // The thread fetches channels c of row j of each ROWS: while one row is worked at, those of the next, and where the one after it is.
  let j = thread / ROW;
  let c = thread % ROW;
  var row = Passing(0u, NOWHERE, vec2<f32>());
  var next = row;
  var query = vec4<f32>();
  var gradient = vec4<f32>();
  if (source.first < source.end) {
    row = passingRow(sequence, head, block, source, source.first + i32(j));
    next = passingRow(sequence, head, block, source, source.first + i32(ROWS + j));
    query = q_row(row.begin, 4u * c);
    gradient = dOut_row(row.begin, 4u * c);
  }
  for (var first = source.first; first < source.end; first += i32(ROWS)) {
    let all = first >= allFirst && first + i32(ROWS) <= allEnd;
    let isRow = row.place != NOWHERE && c < DQ;
    workgroupBarrier();
    queries[thread] = select(vec4<f32>(), query, isRow);
    gradients[thread] = select(vec4<f32>(), gradient, isRow);
    if (c == 0u) { statsOf[j] = row.stats; }
    if (!all && isRow) {
      noteNonFinite(query);
      noteNonFinite(gradient);
    }
    workgroupBarrier();
    query = q_row(next.begin, 4u * c);
    gradient = dOut_row(next.begin, 4u * c);
    let afterNext = passingRow(sequence, head, block, source, first + i32(2u * ROWS + j));
    let slot = row.place * (DQ + 1u);
    let isTouched = first + i32(j) < source.touched;
    var sum = vec4<f32>();
    if (isRow && isTouched) { sum = slots[slot + c]; }
    for (var pair = 0u; pair < ROWS / 2u; pair++) {
      passPair(thread, place, pair, first, all, low, high, k, v, dk, dv);
    }
    workgroupBarrier();
    if (isRow) {
      @unroll for (var n = 0u; n < SUBGROUP_COUNT; n++) { sum += sumsOf[n * THREADS + thread]; }
      slots[slot + c] = sum;
      if (c == 0u && !isTouched) { slots[slot + DQ] = vec4<f32>(0.0, 1.0, 0.0, 0.0); }
    }
    row = next;
    next = afterNext;
  }
}

// Two rows of those in workgroup memory.
fn passPair(
  thread: u32, place: Place, pair: u32, first: i32, all: bool, low: vec4<i32>, high: vec4<i32>,
  k: ptr<function, array<vec4<f32>, 8>>, v: ptr<function, array<vec4<f32>, 8>>,
  dk: ptr<function, array<vec4<f32>, 8>>, dv: ptr<function, array<vec4<f32>, 8>>,
) {
  let mine = 2u * pair + place.mine;
  let other = mine ^ 1u;
  let myQuery = Channels(queries[mine * ROW + place.near], queries[mine * ROW + place.far]);
  let otherQuery = Channels(queries[other * ROW + place.near], queries[other * ROW + place.far]);
  let myGradient = Channels(gradients[mine * ROW + place.near], gradients[mine * ROW + place.far]);
  let otherGradient = Channels(gradients[other * ROW + place.near], gradients[other * ROW + place.far]);
  var p0 = products(k, myQuery) + subgroupShuffleXor(products(k, otherQuery), HALF);
  var ds0 = products(v, myGradient) + subgroupShuffleXor(products(v, otherGradient), HALF);
  @unroll for (var n = 0u; n < HALF_LEVELS; n++) {
    p0 += subgroupShuffleXor(p0, 1u << n);
    ds0 += subgroupShuffleXor(ds0, 1u << n);
  }
  let mySeen = visible(low, high, first + i32(mine));
  let otherSeen = visible(low, high, first + i32(other));
  // A score that is NaN and seen makes the row's log-sum-exp NaN: looked at once a row, not once a score.
  let stats = statsOf[mine];
  p0 = exp2(p0 * (p.scale * LOG2_E) - vec4<f32>(stats.x)) + vec4<f32>(select(0.0, stats.x, isNan(stats.x)));
  ds0 = p0 * (ds0 - vec4<f32>(stats.y));
  if (!all) {
    p0 = select(vec4<f32>(), p0, mySeen);
    ds0 = select(vec4<f32>(), ds0, mySeen);
  }
  let p1 = subgroupShuffleXor(p0, HALF);
  let ds1 = subgroupShuffleXor(ds0, HALF);
  var mySum: Channels;
  var otherSum: Channels;
  if (all || atomicLoad(&nonFinite) == 0u) {
    addProducts(dv, p0, myGradient);
    addProducts(dv, p1, otherGradient);
    addProducts(dk, ds0, myQuery);
    addProducts(dk, ds1, otherQuery);
    mySum = sums(k, ds0);
    otherSum = sums(k, ds1);
  } else {
    // A weight of 0 does not do for what is not finite and not to be seen: 0 · NaN is NaN.
    addSeen(dv, p0, myGradient, mySeen);
    addSeen(dv, p1, otherGradient, otherSeen);
    addSeen(dk, ds0, myQuery, mySeen);
    addSeen(dk, ds1, otherQuery, otherSeen);
    mySum = sumsSeen(k, ds0, mySeen);
    otherSum = sumsSeen(k, ds1, otherSeen);
  }
  if (GROUPS >= 2u) {
    mySum.near += subgroupShuffleXor(otherSum.near, LANES);
    mySum.far += subgroupShuffleXor(otherSum.far, LANES);
  }
  if (GROUPS >= 4u) { mySum.near += subgroupShuffleXor(mySum.far, 2u * LANES); }
  @unroll for (var n = 0u; n < GROUP_LEVELS; n++) {
    mySum.near += subgroupShuffleXor(mySum.near, (4u * LANES) << n);
  }
  let at = thread / SUBGROUP * THREADS;
  if (place.group % GROUPS < 4u) { sumsOf[at + mine * ROW + place.near] = mySum.near; }
  if (GROUPS < 4u) { sumsOf[at + mine * ROW + place.far] = mySum.far; }
  if (GROUPS < 2u) {
    sumsOf[at + other * ROW + place.near] = otherSum.near;
    sumsOf[at + other * ROW + place.far] = otherSum.far;
  }
}

// A thread's channels of a row.
struct Channels {
  near: vec4<f32>,
  far: vec4<f32>,
}

// Whether each of a thread's keys is seen by a row.
fn visible(low: vec4<i32>, high: vec4<i32>, row: i32) -> vec4<bool> {
  return (vec4<i32>(row) >= low) & (vec4<i32>(row) < high);
}

// The products of a thread's channels of its keys with those of a row.
fn products(keys: ptr<function, array<vec4<f32>, 8>>, row: Channels) -> vec4<f32> {
  var sum = vec4<f32>();
  @unroll for (var n = 0u; n < 4u; n++) { sum = fma(vec4<f32>(row.near[n]), (*keys)[n], sum); }
  @unroll for (var n = 0u; n < 4u; n++) { sum = fma(vec4<f32>(row.far[n]), (*keys)[4u + n], sum); }
  return sum;
}

// sums[·] += weights · row
fn addProducts(sums: ptr<function, array<vec4<f32>, 8>>, weights: vec4<f32>, row: Channels) {
  @unroll for (var n = 0u; n < 4u; n++) {
    (*sums)[n] = fma(weights, vec4<f32>(row.near[n]), (*sums)[n]);
    (*sums)[4u + n] = fma(weights, vec4<f32>(row.far[n]), (*sums)[4u + n]);
  }
}

fn addSeen(sums: ptr<function, array<vec4<f32>, 8>>, weights: vec4<f32>, row: Channels, seen: vec4<bool>) {
  @unroll for (var n = 0u; n < 4u; n++) {
    let near = fma(weights, vec4<f32>(row.near[n]), (*sums)[n]);
    let far = fma(weights, vec4<f32>(row.far[n]), (*sums)[4u + n]);
    (*sums)[n] = select((*sums)[n], near, seen);
    (*sums)[4u + n] = select((*sums)[4u + n], far, seen);
  }
}

// Σ weights[e] · key e
fn sums(keys: ptr<function, array<vec4<f32>, 8>>, weights: vec4<f32>) -> Channels {
  var sum: Channels;
  @unroll for (var n = 0u; n < 4u; n++) {
    sum.near[n] = dot(weights, (*keys)[n]);
    sum.far[n] = dot(weights, (*keys)[4u + n]);
  }
  return sum;
}

fn sumsSeen(keys: ptr<function, array<vec4<f32>, 8>>, weights: vec4<f32>, seen: vec4<bool>) -> Channels {
  var sum: Channels;
  @unroll for (var n = 0u; n < 4u; n++) {
    sum.near[n] = dot(weights, select(vec4<f32>(), (*keys)[n], seen));
    sum.far[n] = dot(weights, select(vec4<f32>(), (*keys)[4u + n], seen));
  }
  return sum;
}
