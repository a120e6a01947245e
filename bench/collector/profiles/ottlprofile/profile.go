// Package ottlprofile stands for conditions on profiles in the benchmarks' peer, which handles logs, traces and metrics only. Its
// tail sampling names this module on its way to conditions on spans; the module itself is not served by every Go proxy.
package ottlprofile

import (
	"errors"

	"github.com/open-telemetry/opentelemetry-collector-contrib/pkg/ottl"
	"go.opentelemetry.io/collector/component"
)

const ContextName = "profile"

type TransformContext struct{}

type ConditionSequenceOption func(*ottl.ConditionSequence[*TransformContext])

func EnablePathContextNames() ottl.Option[*TransformContext] {
	return func(*ottl.Parser[*TransformContext]) {}
}

func WithConditionSequenceErrorMode(errorMode ottl.ErrorMode) ConditionSequenceOption {
	return ConditionSequenceOption(ottl.WithConditionSequenceErrorMode[*TransformContext](errorMode))
}

func NewConditionSequence(
	conditions []*ottl.Condition[*TransformContext], settings component.TelemetrySettings, options ...ConditionSequenceOption,
) ottl.ConditionSequence[*TransformContext] {
	sequence := ottl.NewConditionSequence(conditions, settings)
	for _, option := range options {
		option(&sequence)
	}
	return sequence
}

func NewParser(
	map[string]ottl.Factory[*TransformContext], component.TelemetrySettings, ...ottl.Option[*TransformContext],
) (ottl.Parser[*TransformContext], error) {
	return ottl.Parser[*TransformContext]{}, errors.New("this Collector has no conditions on profiles")
}
