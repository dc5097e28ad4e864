// Package errandtest lets the program of a package's tests run that package's errands.
package errandtest

import (
	"fmt"
	"io"
	"os"
	"testing"
)

// Main is what TestMain has to do: it runs the tests, or, where the program was started with the
// argument alone, serves orders from standard input. It does not return.
func Main(m *testing.M, argument string, serve func(from io.Reader, to io.Writer) error) {
	if len(os.Args) != 2 || os.Args[1] != argument {
		os.Exit(m.Run())
	}
	if err := serve(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}
