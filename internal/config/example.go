package config

import _ "embed"

//go:embed example.toml
var example string

// Example is a config.toml with every key at its default and what it means.
func Example() string { return example }
