package main

import (
	"bufio"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

var (
	resultLine = regexp.MustCompile(`^(not )?ok\b`)
	planLine   = regexp.MustCompile(`^1\.\.(\d+)`)
)

// silent are programs that want the creation of a container to fail, and when it does have no more to say: they tell
// whether it did by their exit status alone.
var silent = map[string]bool{"process_capabilities_fail": true, "process_rlimits_fail": true}

// judge reads a program's TAP (version 13) and says why it failed, "" if it passed. A "not ok", a count that doesn't match
// the plan, a bail-out, and an error that belongs to no result all fail it.
func judge(program, tap string) string {
	if tap == "" && silent[program] {
		return ""
	}
	results, plan, diagnosis := 0, -1, false
	explained := true // there is no result whose diagnosis might follow
	lines := bufio.NewScanner(strings.NewReader(tap))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		trimmed := strings.TrimSpace(line)
		switch {
		case diagnosis:
			// Some programs report a failure by nothing but a diagnosis that belongs to no result.
			if strings.HasPrefix(trimmed, `"error"`) && explained {
				return trimmed
			}
			if diagnosis = trimmed != "..."; !diagnosis {
				explained = true
			}
		case trimmed == "---":
			diagnosis = true
		case strings.HasPrefix(line, "Bail out!"):
			return line
		case resultLine.MatchString(line):
			results++
			explained = false
			if strings.HasPrefix(line, "not ok") {
				return line
			}
		case planLine.MatchString(line):
			n, _ := strconv.Atoi(planLine.FindStringSubmatch(line)[1])
			plan = max(plan, n) // some print an empty one for an empty part, and then their own
		case strings.HasPrefix(strings.ToLower(trimmed), "error"):
			return line
		}
	}
	switch {
	case lines.Err() != nil:
		return lines.Err().Error()
	case plan < 0:
		return "no plan: it did not come to its end"
	case plan != results:
		return fmt.Sprintf("%d results where %d were planned", results, plan)
	}
	return ""
}
