package system

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	"github.com/minke-os/minke/cli/connect"
	"github.com/minke-os/minke/cli/format"
)

// StoreCommand has what docker has no command for.
func StoreCommand(s *connect.Session) *cobra.Command {
	c := &cobra.Command{Use: "store COMMAND", Short: "Look after the image store"}
	var repair bool
	check := &cobra.Command{
		Use: "check", Short: "Read all images and compare them with their digests",
		Long: "Read all images and compare every link, record and digest with what it must be.\n\n" +
			"It changes nothing, may run while containers do, and takes as long as reading all images.\n" +
			"With --repair, what is damaged is taken out, so that pulling the images again brings it back.",
		Example: "  minke store check\n  minke store check --repair",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return checkStore(cmd.Context(), s, repair) },
	}
	check.Flags().BoolVar(&repair, "repair", false, "take out what is damaged")
	c.AddCommand(check)
	return c
}

// A storeReport is the answer of POST /minke/store/check.
type storeReport struct {
	Images   int
	Layers   int
	Objects  int
	Bytes    int64
	Problems []string
	Repaired *struct {
		Layers  int
		Objects int
		Images  []string
	}
}

func checkStore(ctx context.Context, s *connect.Session, repair bool) error {
	r, err := askCheck(ctx, s, repair)
	if err != nil {
		return err
	}
	for _, p := range r.Problems {
		fmt.Fprintln(s.Out, p)
	}
	fmt.Fprintf(s.Out, "Checked %d images, %d layers and %s of content.\n", r.Images, r.Layers, format.Size(r.Bytes))
	switch {
	case len(r.Problems) == 0:
		fmt.Fprintln(s.Out, "All is well.")
		return nil
	case r.Repaired == nil:
		return fmt.Errorf("%d problems; \"minke store check --repair\" takes out what is damaged, and then pull the images again", len(r.Problems))
	}
	fmt.Fprintf(s.Out, "Took out %d layers and %d objects.\n", r.Repaired.Layers, r.Repaired.Objects)
	for _, name := range r.Repaired.Images {
		fmt.Fprintf(s.Out, "Pull or load again: %s\n", name)
	}
	return nil
}

func askCheck(ctx context.Context, s *connect.Session, repair bool) (r storeReport, err error) {
	engine, err := s.Engine()
	if err != nil {
		return r, err
	}
	defer engine.Close()
	h := connect.HTTP(engine)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, fmt.Sprintf("%s/minke/store/check?repair=%t", connect.Base, repair), nil)
	if err != nil {
		return r, err
	}
	resp, err := h.Do(req)
	if err != nil {
		return r, err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
		err = json.NewDecoder(resp.Body).Decode(&r)
	case http.StatusNotFound:
		err = errors.New("this engine cannot check its store: it is not minke's, or an old one")
	default:
		var refusal struct{ Message string }
		err = json.NewDecoder(resp.Body).Decode(&refusal)
		err = errors.Join(err, errors.New(refusal.Message))
	}
	return r, err
}
