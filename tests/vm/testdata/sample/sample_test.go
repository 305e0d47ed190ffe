// Package sample is what the harness's own test runs in a guest.
package sample

import (
	"os"
	"testing"
)

func TestPass(t *testing.T) {
	if _, err := os.Stat("testdata-of-sample.txt"); err != nil {
		t.Error(err) // a test finds the files beside it
	}
	if os.Getenv("LEARNOS_VM") != "1" {
		t.Error("not in a guest")
	}
}

func TestSkip(t *testing.T) { t.Skip("as asked") }

func TestMayFail(t *testing.T) {
	if os.Getenv("SAMPLE_FAILS") != "" {
		t.Error("as asked")
	}
}
