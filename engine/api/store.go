package api

import (
	"net/http"
)

// storeReport answers POST /minke/store/check, which Docker does not have.
type storeReport struct {
	Images   int
	Layers   int
	Objects  int
	Bytes    int64
	Problems []string
	Repaired *storeRepaired `json:",omitempty"`
}

type storeRepaired struct {
	Layers  int
	Objects int
	Images  []string // to be pulled again
}

// storeCheck answers when all of the store has been read, which may take
// minutes; a client that leaves ends it.
func (s *Server) storeCheck(w http.ResponseWriter, r *http.Request) error {
	repair := boolParam(r, "repair")
	report, repaired, err := s.engine.StoreCheck(r.Context(), repair)
	if err != nil {
		return err
	}
	out := storeReport{Images: report.Images, Layers: report.Layers, Objects: report.Objects, Bytes: report.Bytes, Problems: []string{}}
	for _, p := range report.Problems {
		out.Problems = append(out.Problems, p.What)
	}
	if repair {
		out.Repaired = &storeRepaired{repaired.Layers, repaired.Objects, repaired.Images}
	}
	return writeJSON(w, http.StatusOK, out)
}
