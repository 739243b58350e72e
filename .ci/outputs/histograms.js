// Reads .hlog and .hgrm back with hdr-histogram-js, which shares no code with ours.
//
// Takes the stems of files: for each, STEM.json is a record, STEM.hlog its log, STEM.TIMING.hgrm a
// distribution of it. Takes MERGED.hlog after --merged, the sum of all of them. Prints a line per file;
// exits with 1 if any figure differs.
"use strict";

const assert = require("node:assert/strict");
const fs = require("node:fs");
const { HistogramLogReader, build } = require("hdr-histogram-js");

const TIMINGS = [
  "response_time", "send_lag", "flow_wait", "service_time", "gap_error",
  "probe_response_time", "probe_service_time",
  "connect", "response_headers", "first_message", "half_close",
];
const PERCENTS = { p50_ns: 50, p90_ns: 90, p99_ns: 99, p99_9_ns: 99.9, p99_99_ns: 99.99 };

// Counts beyond 32 bits are possible, so buckets are floats.
const BUCKET_BITS = 64;

/** All intervals of a log, in order. */
function intervals(file) {
  const reader = new HistogramLogReader(fs.readFileSync(file, "utf8"), BUCKET_BITS);
  const read = [];
  for (let next; (next = reader.nextIntervalHistogram()) !== null; ) read.push(next);
  return read;
}

/** The value of the rank that a percentile has: the library rounds to the nearest rank, loadgen up. */
function valueAt(histogram, percent) {
  const total = BigInt(histogram.totalCount);
  const thousandths = BigInt(Math.round(percent * 1000));
  const rank = (total * thousandths + 99_999n) / 100_000n;
  return histogram.getValueAtPercentile((100 * Number(rank)) / Number(total));
}

/** The figures that a record writes beside a histogram are those of the histogram that was read. */
function assertSame(histogram, written, what) {
  assert.equal(histogram.totalCount, written.count, `${what}: count`);
  if (written.count === 0) return;
  for (const [key, percent] of Object.entries(PERCENTS)) {
    assert.equal(valueAt(histogram, percent), written[key], `${what}: ${key}`);
  }
  assert.equal(histogram.maxValue, written.max_ns, `${what}: max_ns`);
  assert.equal(histogram.minNonZeroValue, written.min_ns, `${what}: min_ns`);
}

/** A record's histogram by its tag in the log. */
function written(measured, tag) {
  return tag.startsWith("probe_") ? measured.probe?.[tag.slice("probe_".length)] : measured[tag];
}

/** Of a second, not of the whole run. */
const isSecond = (histogram) => histogram.tag.endsWith("_by_second");

/** Each timing of a record is a tag of its log, and each second an interval. */
function checkLog(stem) {
  const { measured, provenance } = JSON.parse(fs.readFileSync(`${stem}.json`, "utf8"));
  const read = intervals(`${stem}.hlog`);
  const present = TIMINGS.filter((timing) => written(measured, timing)?.count > 0);
  assert.ok(present.includes("service_time"));
  const whole = read.filter((histogram) => !isSecond(histogram));
  assert.deepEqual(whole.map((histogram) => histogram.tag), present);
  for (const histogram of whole) assertSame(histogram, written(measured, histogram.tag), histogram.tag);
  const seconds = read.filter(isSecond);
  assert.equal(seconds.length, measured.seconds.length);
  const began = Date.parse(provenance.window_began_at);
  seconds.forEach((histogram, index) => {
    assertSame(histogram, measured.seconds[index].latency, `second ${index}`);
    assert.ok(Math.abs(histogram.startTimeStampMsec - (began + 1000 * index)) < 0.5);
    assert.ok(Math.abs(histogram.endTimeStampMsec - histogram.startTimeStampMsec - 1000) < 0.5);
  });
  console.log(`${stem}.hlog: ${present.length} tags and ${seconds.length} seconds are the record's`);
}

/** The rows of a distribution are those that the library prints of the same histogram. */
function checkDistribution(stem, timing) {
  const file = `${stem}.${timing}.hgrm`;
  const histogram = intervals(`${stem}.hlog`).find((it) => it.tag === timing);
  const rows = (text) => text.split("\n").map((line) => line.trim().split(/ +/))
    .filter((cells) => cells.length >= 3 && cells.every((cell) => /^[\d.]+$|^Infinity$/.test(cell)))
    .map((cells) => cells.slice(0, 3).map(Number));
  const ours = rows(fs.readFileSync(file, "utf8"));
  const theirs = rows(histogram.outputPercentileDistribution(5, 1e6));
  assert.ok(ours.length > 10, `${file}: ${ours.length} rows`);
  assert.deepEqual(ours, theirs, file);
  console.log(`${file}: ${ours.length} rows are the library's own`);
}

/** The sum of all logs holds every value of every log, once. */
function checkMerged(merged, stems) {
  const sums = new Map();
  for (const histogram of stems.flatMap((stem) => intervals(`${stem}.hlog`))) {
    if (!sums.has(histogram.tag)) {
      sums.set(histogram.tag, build({
        bitBucketSize: BUCKET_BITS,
        highestTrackableValue: 3_600_000_000_000,
        numberOfSignificantValueDigits: 3,
      }));
    }
    sums.get(histogram.tag).add(histogram);
  }
  const read = new Map();
  for (const histogram of intervals(merged)) {
    if (read.has(histogram.tag)) read.get(histogram.tag).add(histogram);
    else read.set(histogram.tag, histogram);
  }
  assert.deepEqual([...read.keys()].sort(), [...sums.keys()].sort());
  for (const [tag, sum] of sums) {
    assert.equal(read.get(tag).totalCount, sum.totalCount, `${tag}: count`);
    for (const percent of [0, 25, 50, 75, 90, 99, 99.9, 99.99, 100]) {
      assert.equal(
        read.get(tag).getValueAtPercentile(percent),
        sum.getValueAtPercentile(percent),
        `${tag}: ${percent} %`,
      );
    }
  }
  console.log(`${merged}: ${sums.size} tags hold each value of ${stems.length} logs once`);
}

const args = process.argv.slice(2);
const at = args.indexOf("--merged");
const stems = at < 0 ? args : args.slice(0, at);
assert.ok(stems.length > 0, "pass the stems of records");
for (const stem of stems) {
  checkLog(stem);
  for (const timing of TIMINGS) {
    if (fs.existsSync(`${stem}.${timing}.hgrm`)) checkDistribution(stem, timing);
  }
}
if (at >= 0) checkMerged(args[at + 1], stems);
