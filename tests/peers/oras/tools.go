//go:build tools

// Package tools pins the oras command line for the end-to-end tests.
package tools

import _ "oras.land/oras/cmd/oras"
