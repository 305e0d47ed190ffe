// Command init is PID 1 of an environment.
package main

func main() {}
