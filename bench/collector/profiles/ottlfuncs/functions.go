// Package ottlfuncs stands for the functions on profiles, of which there are none here.
package ottlfuncs

import "github.com/open-telemetry/opentelemetry-collector-contrib/pkg/ottl"

// WithProfileConverters returns the functions as they are.
func WithProfileConverters[K any](functions map[string]ottl.Factory[K]) map[string]ottl.Factory[K] {
	return functions
}
