// Command main is package insider as a program of its own.
package main

import (
	"os"

	"github.com/learnos/learnos/runtime/internal/insider"
)

func main() { insider.Run(os.Args[1:]) }
