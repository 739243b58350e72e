// Opens a page of loadgen report in a real browser, headless, as a reader would.
//
// Takes PAGE.html and the records that it shows, in their order; BROWSER is the path of a Chromium.
// Asserts: nothing on the console, nothing asked of any network, no script, every figure in the page is
// the record's and is shown as that, and nothing sticks out at the side of a wide or a narrow window,
// light, dark or printed. With SCREENSHOTS, a folder, it leaves a picture of each.
"use strict";

const assert = require("node:assert/strict");
const fs = require("node:fs");
const path = require("node:path");
const { pathToFileURL } = require("node:url");
const { chromium } = require("playwright-core");

// No browser looks beyond this machine, and root has no sandbox to give.
const FLAGS = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync",
];

const LOOKS = [
  { name: "light", width: 1280, media: "screen", colorScheme: "light" },
  { name: "dark", width: 1280, media: "screen", colorScheme: "dark" },
  { name: "narrow", width: 400, media: "screen", colorScheme: "light" },
  { name: "print", width: 1000, media: "print", colorScheme: "light" },
];

const NS = { ns: 1, "µs": 1e3, ms: 1e6, s: 1e9 };
const MANY = { "": 1, k: 1e3, M: 1e6, G: 1e9 };

/** What a record has under a key; status names and header names may have dots of their own. */
function lookUp(value, key) {
  if (value === null || typeof value !== "object") return undefined;
  if (key in value) return value[key];
  for (let dot = key.indexOf("."); dot > 0; dot = key.indexOf(".", dot + 1)) {
    const found = lookUp(value[key.slice(0, dot)], key.slice(dot + 1));
    if (found !== undefined) return found;
  }
  return undefined;
}

/** What the page derives from a record by itself. */
function derived({ measured }) {
  const echoes = [...measured.echoes_per_stream].sort((a, b) => a - b);
  const sum = echoes.reduce((total, it) => total + it, 0);
  const squares = echoes.reduce((total, it) => total + it * it, 0);
  return {
    jain_index: (sum * sum) / (echoes.length * squares),
    echoes_per_stream_mean: sum / echoes.length,
    echoes_per_stream_min: echoes[0],
    echoes_per_stream_median: echoes[Math.floor((echoes.length - 1) / 2)],
    echoes_per_stream_max: echoes.at(-1),
    streams_without_echo: echoes.filter((it) => it === 0).length,
  };
}

/** Whether a text says this number, rounded for people. */
function says(text, number, key) {
  const [, digits, unit] = /^(-?[\d.]+) ?(\S*)$/.exec(text) ?? [];
  const near = (factor, error) => Math.abs(Number(digits) * factor - number) <= error;
  if (digits === undefined) return false;
  if (unit === "%") return near(0.01, 0.000051);
  if (key.endsWith("_bytes_max")) return near(1 << 20, 0.06 * (1 << 20));
  const factor = { ...MANY, ...NS }[unit];
  return factor !== undefined && near(factor, Math.abs(number) * 0.0051);
}

/** Whether a text is a time between these, rounded for people. */
function isBetween(text, least, most) {
  const [, digits, unit] = /^([\d.]+) ?(\S*)$/.exec(text) ?? [];
  const value = Number(digits) * NS[unit];
  return value >= least * 0.9949 && value <= most * 1.0051;
}

/** Messages without an echo that a percentile takes for later than all that it is of; 0 if it is none. */
function missing({ measured }, key) {
  if (!/\.p[0-9_]+_ns$/.test(key)) return 0;
  const second = /^measured\.seconds\.(\d+)\./.exec(key);
  if (second) return measured.seconds[second[1]].messages_shed ?? 0;
  const isOfMessages = /^measured\.(response|service)_time\./.test(key);
  return isOfMessages ? measured.messages_lost + (measured.messages_shed ?? 0) : 0;
}

/** One figure of the page against the record that it is of. */
function checkFigure({ run, key, value, text }, records) {
  const record = records[run];
  assert.ok(record, `${key} stands in no run`);
  const all = { ...record, derived: derived(record) };
  const expected = lookUp(all, key);
  assert.notEqual(expected, undefined, `the record has no ${key}`);
  if (typeof expected !== "number") {
    const items = Array.isArray(expected) ? expected.map((it) => JSON.stringify(it)).join(", ") : expected;
    assert.equal(value, String(items), key);
    return false;
  }
  assert.ok(Math.abs(Number(value) - expected) <= Math.abs(expected) * 1e-12, `${key}: ${value}`);
  const isUnknown = text === "–" || text.startsWith(">");
  // With messages that are missing a percentile is a later value of the same histogram.
  const isLater = missing(record, key) > 0 && isBetween(text, expected, lookUp(record, key.replace(/[^.]+$/, "max_ns")));
  assert.ok(isUnknown || isLater || says(text, expected, key), `${key}: shown as ${text}, and is ${expected}`);
  return true;
}

/** Every figure, and that none of the important ones is missing. */
async function checkFigures(page, records) {
  const figures = await page.$$eval("[data-key]", (elements) => elements.map((element) => ({
    run: element.closest("[data-run]")?.dataset.run,
    key: element.dataset.key,
    value: element.getAttribute("value"),
    text: element.textContent.trim(),
  })));
  const numbers = figures.filter((figure) => checkFigure(figure, records)).length;
  const keys = new Set(figures.map((figure) => `${figure.run} ${figure.key}`));
  records.forEach(({ measured }, run) => {
    const needed = ["throughput_messages_per_s", "messages_lost", "messages_wrong", "service_time.p99_ns"];
    if (measured.response_time) needed.push("response_time.p99_9_ns", "send_lag.p99_ns", "flow_wait.max_ns");
    measured.seconds.forEach((_, index) => needed.push(`seconds.${index}.latency.p99_ns`));
    records[run].gates.forEach((_, index) => assert.ok(keys.has(`${run} gates.${index}.verdict`)));
    for (const key of needed) assert.ok(keys.has(`${run} measured.${key}`), `run ${run}: no ${key}`);
    assert.ok(keys.has(`${run} derived.jain_index`));
  });
  const invalid = records.filter(({ gates }) => gates.some(({ verdict }) => verdict === "failed")).length;
  const banners = await page.locator("[data-run]").getByText(/^INVALID: /).count();
  assert.equal(banners, invalid, "banners of runs that are not valid");
  return numbers;
}

/** Charts are there and say what they show; nothing sticks out. */
async function checkLook(page, look) {
  await page.setViewportSize({ width: look.width, height: 900 });
  await page.emulateMedia({ media: look.media, colorScheme: look.colorScheme });
  const { beyond, unnamed, charts, background } = await page.evaluate(() => ({
    beyond: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    unnamed: document.querySelectorAll("svg:not([aria-label])").length,
    charts: document.querySelectorAll("svg").length,
    background: getComputedStyle(document.body).backgroundColor,
  }));
  assert.equal(unnamed, 0, "charts without a label");
  assert.ok(charts >= 5, `${charts} charts`);
  const brightness = Number(/\d+/.exec(background)[0]);
  assert.equal(brightness < 128, look.name === "dark", `${look.name}: ${background}`);
  if (process.env.SCREENSHOTS) {
    const file = path.join(process.env.SCREENSHOTS, `${look.name}.png`);
    await page.screenshot({ path: file, fullPage: true });
  }
  assert.ok(beyond <= 0, `${look.name}: ${beyond} pixels stick out`);
}

async function main() {
  const [file, ...recordFiles] = process.argv.slice(2);
  const records = recordFiles.map((it) => JSON.parse(fs.readFileSync(it, "utf8")));
  const url = pathToFileURL(path.resolve(file)).href;
  const browser = await chromium.launch({ executablePath: process.env.BROWSER, args: FLAGS });
  try {
    const page = await browser.newPage();
    const complaints = [];
    page.on("console", (message) => complaints.push(`${message.type()}: ${message.text()}`));
    page.on("pageerror", (error) => complaints.push(`error: ${error.message}`));
    page.on("request", (request) => {
      if (request.url() !== url && !request.url().startsWith("data:")) complaints.push(`asked for ${request.url()}`);
    });
    await page.goto(url, { waitUntil: "load" });
    assert.equal(await page.$("script"), null, "there is a script in it");
    const numbers = await checkFigures(page, records);
    for (const look of LOOKS) await checkLook(page, look);
    assert.deepEqual(complaints, []);
    console.log(`${file}: ${numbers} figures are the records', in ${LOOKS.length} looks; no complaints`);
  } finally {
    await browser.close();
  }
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
