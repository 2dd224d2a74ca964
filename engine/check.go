package engine

import (
	"context"

	"github.com/minke-os/minke/engine/store"
)

// StoreCheck reads all images and compares them with their digests, and with
// repair takes out what is damaged. See store.Check and store.Repair.
func (e *Engine) StoreCheck(ctx context.Context, repair bool) (store.Report, store.Repaired, error) {
	report, err := e.images.Check(ctx)
	if err != nil || !repair || len(report.Problems) == 0 {
		return report, store.Repaired{}, err
	}
	for _, p := range report.Problems {
		e.log.Error("image store is damaged", "problem", p.What)
	}
	repaired, err := e.images.Repair(ctx, report, e.imageUser)
	return report, repaired, err
}
