#!/usr/bin/env python3
"""Holds loadgen's figures against two witnesses that know nothing of it.

The server's own counters must agree exactly. A packet capture on loopback (tshark) tells when each message left
and when its echo came: at a low rate loadgen's service time must agree with that within 50 us at the median, and so must what it
says of departures, how far the gaps between them are from the plan's, and its response time, which the plan begins; the
differences at p99 are printed. Between a program's clock and the wire lies the kernel: on cores of a virtual machine that slept it
alone took more than that. So loadgen's is kept awake, and each side has a core of its own, where there are two. Needs tshark
and the right to capture on lo.

usage: witness.py FOLDER_OF_BINARIES
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Low: a message comes back long before the next one is due.
RATE = 1000
SECONDS = 10
P50_DIFFERENCE_MAX_US = 50
# A prefix of 5, tag and length, a payload of 8.
MESSAGE_BYTES = 15


def percentile(values, percent):
    """As HdrHistogram has it: the smallest value that so many percent do not exceed."""
    rank = -(-len(values) * percent // 100)
    return sorted(values)[int(rank) - 1]


def capture(port, seconds, folder):
    """A tshark that writes a file until `seconds` have passed."""
    file = folder / "lo.pcapng"
    command = ["tshark", "-q", "-i", "lo", "-f", f"tcp port {port}", "-a", f"duration:{seconds}", "-w", str(file)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "Capturing on" in line:
            # It says so some time before it does, and nothing when it does.
            time.sleep(1)
            return process, file
    sys.exit(f"tshark does not capture: exit code {process.wait()}")


def instants(file, port):
    """When each message's DATA frame left, and when its echo's came: two lists in seconds, in the order of the stream."""
    fields = ["frame.time_epoch", "tcp.dstport", "http2.type", "http2.length"]
    command = ["tshark", "-r", str(file), "-d", f"tcp.port=={port},http2", "-Y", "http2.type == 0", "-T", "fields"]
    command += [argument for field in fields for argument in ("-e", field)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    left, came = [], []
    for line in out.splitlines():
        at, destination, types, lengths = line.split("\t")
        frames = zip(types.split(","), lengths.split(","))
        # A frame holds whole messages, or none and ends the stream.
        messages = sum(int(length) for kind, length in frames if kind == "0") // MESSAGE_BYTES
        (left if destination == port else came).extend([float(at)] * messages)
    if not left or len(left) != len(came):
        sys.exit(f"the capture has {len(left)} messages and {len(came)} echoes: packets were lost")
    return left, came


def hold(what, histogram, wire):
    """One of the record's histograms beside the same times on the wire, in us."""
    for percent, key in ((50, "p50_ns"), (99, "p99_ns")):
        ours, theirs = histogram[key] / 1e3, percentile(wire, percent)
        print(f"{what} p{percent}: {ours:.1f} us, on the wire {theirs:.1f} us, difference {ours - theirs:+.1f} us")
        if percent == 50:
            assert abs(ours - theirs) <= P50_DIFFERENCE_MAX_US, f"{what} is not what the wire says"


def main():
    folder = Path(sys.argv[1])
    cores = sorted(os.sched_getaffinity(0))
    pinned, places = ["taskset", "--cpu-list", str(cores[0])], ["--cpus", str(cores[-1]), "--keep-awake"]
    if len(cores) < 2:
        pinned, places = [], []
    server = subprocess.Popen(
        [*pinned, folder / "bidi-echo", "--listen", "127.0.0.1:0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )
    try:
        port = None
        for line in server.stderr:
            found = re.search(r"listen=127\.0\.0\.1:(\d+)", line)
            if found:
                port = found[1]
                break
        if port is None:
            sys.exit("the server does not say where it listens")
        with tempfile.TemporaryDirectory() as temporary:
            tshark, file = capture(port, SECONDS + 5, Path(temporary))
            loadgen = subprocess.run(
                [folder / "loadgen", "--target", f"http://127.0.0.1:{port}", "--streams", "1", "--rate", str(RATE)]
                + places + ["--duration", f"{SECONDS}s", "--warmup", "0s", "--json", "-"],
                check=True, capture_output=True, text=True, timeout=120,
            )
            tshark.wait(timeout=60)
            left, came = instants(file, port)
        measured = json.loads(loadgen.stdout)["measured"]
    finally:
        server.terminate()
        said, _ = server.communicate(timeout=60)
    print(said.strip())
    counted = [int(number) for number in re.findall(r"messages_(?:in|out)=(\d+)", said)]
    sent = measured["messages_sent"]
    assert len(counted) == 2 and all(count == sent for count in counted), f"loadgen sent {sent}, the server counted {counted}"
    assert len(left) == sent, f"loadgen sent {sent}, the capture has {len(left)}"
    print(f"messages: {sent} by loadgen, by the server's counters, and on the wire")
    round_trips = [1e6 * (echo - message) for message, echo in zip(left, came)]
    hold("service time", measured["service_time"], round_trips)
    # S is taken outside the packets: it cannot be shorter.
    assert measured["service_time"]["p50_ns"] / 1e3 >= percentile(round_trips, 50), "S is shorter than the way on the wire"
    gaps = [1e6 * abs(later - earlier - 1 / RATE) for earlier, later in zip(left, left[1:])]
    assert measured["gap_error"]["count"] == len(gaps)
    hold("departure gaps, off the plan by", measured["gap_error"], gaps)
    # The plan has a message each 1 / RATE. The capture does not know when it began: not after the earliest departure.
    began = min(at - number / RATE for number, at in enumerate(left))
    responses = [1e6 * (at - began - number / RATE) for number, at in enumerate(came)]
    hold("response time", measured["response_time"], responses)


if __name__ == "__main__":
    main()
