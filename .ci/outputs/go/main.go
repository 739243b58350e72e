// Reads .hlog back with hdrhistogram-go, which shares no code with ours.
//
// Takes the stems of files: for each, STEM.json is a record and STEM.hlog its log. Prints a line per file;
// exits with 1 if any figure differs.
package main

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Percentiles that a record writes.
var percents = []float64{50, 90, 99, 99.9, 99.99}

// written is what a record says beside a histogram.
type written struct {
	Count  int64 `json:"count"`
	P50    int64 `json:"p50_ns"`
	P90    int64 `json:"p90_ns"`
	P99    int64 `json:"p99_ns"`
	P99_9  int64 `json:"p99_9_ns"`
	P99_99 int64 `json:"p99_99_ns"`
	Max    int64 `json:"max_ns"`
}

func (w written) percentiles() []int64 { return []int64{w.P50, w.P90, w.P99, w.P99_9, w.P99_99} }

type record struct {
	Measured struct {
		ServiceTime     *written `json:"service_time"`
		ResponseTime    *written `json:"response_time"`
		SendLag         *written `json:"send_lag"`
		FlowWait        *written `json:"flow_wait"`
		GapError        *written `json:"gap_error"`
		Connect         *written `json:"connect"`
		ResponseHeaders *written `json:"response_headers"`
		FirstMessage    *written `json:"first_message"`
		HalfClose       *written `json:"half_close"`
		Probe           *struct {
			ServiceTime  *written `json:"service_time"`
			ResponseTime *written `json:"response_time"`
		} `json:"probe"`
		Seconds []struct {
			Latency written `json:"latency"`
		} `json:"seconds"`
	} `json:"measured"`
	Provenance struct {
		WindowBeganAt time.Time `json:"window_began_at"`
	} `json:"provenance"`
}

// byTag is what the record holds for each tag that its log should have.
func (r record) byTag() map[string]written {
	m := r.Measured
	all := map[string]*written{
		"service_time": m.ServiceTime, "response_time": m.ResponseTime, "send_lag": m.SendLag,
		"flow_wait": m.FlowWait, "gap_error": m.GapError, "connect": m.Connect,
		"response_headers": m.ResponseHeaders, "first_message": m.FirstMessage, "half_close": m.HalfClose,
	}
	if m.Probe != nil {
		all["probe_service_time"] = m.Probe.ServiceTime
		all["probe_response_time"] = m.Probe.ResponseTime
	}
	present := make(map[string]written)
	for tag, histogram := range all {
		if histogram != nil && histogram.Count > 0 {
			present[tag] = *histogram
		}
	}
	return present
}

func read(file string) ([]*hdrhistogram.Histogram, error) {
	log, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	var intervals []*hdrhistogram.Histogram
	for reader := hdrhistogram.NewHistogramLogReader(log); ; {
		next, err := reader.NextIntervalHistogram()
		if err != nil {
			return nil, err
		}
		if next == nil {
			return intervals, nil
		}
		intervals = append(intervals, next)
	}
}

// valueAt is the value of the rank that a percentile has: the library rounds to the nearest rank, loadgen up.
func valueAt(histogram *hdrhistogram.Histogram, percent float64) int64 {
	total := histogram.TotalCount()
	thousandths := int64(math.Round(percent * 1000))
	rank := (total*thousandths + 99_999) / 100_000
	return histogram.ValueAtQuantile(100 * float64(rank) / float64(total))
}

func same(histogram *hdrhistogram.Histogram, expected written) error {
	if histogram.TotalCount() != expected.Count {
		return fmt.Errorf("holds %d values, the record %d", histogram.TotalCount(), expected.Count)
	}
	if expected.Count == 0 {
		return nil
	}
	for index, value := range expected.percentiles() {
		if read := valueAt(histogram, percents[index]); read != value {
			return fmt.Errorf("p%v is %d, in the record %d", percents[index], read, value)
		}
	}
	if histogram.Max() != expected.Max {
		return fmt.Errorf("largest is %d, in the record %d", histogram.Max(), expected.Max)
	}
	return nil
}

func check(stem string) error {
	text, err := os.ReadFile(stem + ".json")
	if err != nil {
		return err
	}
	var record record
	if err := json.Unmarshal(text, &record); err != nil {
		return err
	}
	intervals, err := read(stem + ".hlog")
	if err != nil {
		return err
	}
	expected, seconds := record.byTag(), record.Measured.Seconds
	tags, second := 0, 0
	for _, interval := range intervals {
		if strings.HasSuffix(interval.Tag(), "_by_second") {
			if second == len(seconds) {
				return fmt.Errorf("more than %d seconds", second)
			}
			if err := same(interval, seconds[second].Latency); err != nil {
				return fmt.Errorf("second %d: %w", second, err)
			}
			begin := record.Provenance.WindowBeganAt.UnixMilli() + int64(1000*second)
			if late := interval.StartTimeMs() - begin; late < -1 || late > 1 {
				return fmt.Errorf("second %d begins %d ms late", second, late)
			}
			second++
			continue
		}
		histogram, known := expected[interval.Tag()]
		if !known {
			return fmt.Errorf("tag %q is not of the record, or is there twice", interval.Tag())
		}
		if err := same(interval, histogram); err != nil {
			return fmt.Errorf("%s: %w", interval.Tag(), err)
		}
		delete(expected, interval.Tag())
		tags++
	}
	if len(expected) > 0 || second != len(seconds) || tags == 0 {
		return fmt.Errorf("lacks %d tags and %d seconds", len(expected), len(seconds)-second)
	}
	fmt.Printf("%s.hlog: %d tags and %d seconds are the record's\n", stem, tags, second)
	return nil
}

func main() {
	stems := os.Args[1:]
	if len(stems) == 0 {
		fmt.Fprintln(os.Stderr, "pass the stems of records")
		os.Exit(2)
	}
	for _, stem := range stems {
		if err := check(strings.TrimSuffix(stem, ".json")); err != nil {
			fmt.Fprintf(os.Stderr, "%s.hlog: %v\n", stem, err)
			os.Exit(1)
		}
	}
}
