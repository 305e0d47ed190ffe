package main

import "errors"

// writePage is still to come.
func writePage(*Report, string) error { return errors.New("-page is not there yet") }
