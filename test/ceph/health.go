package ceph

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rbd-csi/rbd-csi/pkg/fault"
)

// pollInterval is how often a condition is looked at that nobody announces.
const pollInterval = 20 * time.Millisecond

// poll looks at cond until it is true, gives an error, or ctx ends.
func poll(ctx context.Context, cond func() (bool, error)) error {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		if done, err := cond(); done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ticker.C:
		}
	}
}

// status is what we read of `ceph status -f json`.
type status struct {
	Health struct {
		Status string `json:"status"`
		Checks map[string]struct {
			Summary struct {
				Message string `json:"message"`
			} `json:"summary"`
		} `json:"checks"`
	} `json:"health"`
	MgrMap struct {
		Available bool `json:"available"`
	} `json:"mgrmap"`
	OSDMap struct {
		OSDs int `json:"num_osds"`
		Up   int `json:"num_up_osds"`
	} `json:"osdmap"`
	PGMap struct {
		Pools  int `json:"num_pools"`
		PGs    int `json:"num_pgs"`
		States []struct {
			Name  string `json:"state_name"`
			Count int    `json:"count"`
		} `json:"pgs_by_state"`
	} `json:"pgmap"`
}

// missing says what there is to be waited for, or "" if the cluster is healthy.
func (s status) missing(osds, pools int) string {
	clean := 0
	for _, state := range s.PGMap.States {
		if state.Name == "active+clean" {
			clean += state.Count
		}
	}
	switch {
	case !s.MgrMap.Available:
		return "no active manager"
	case s.OSDMap.Up < osds:
		return fmt.Sprintf("%d of %d OSDs up", s.OSDMap.Up, osds)
	case s.PGMap.Pools < pools:
		return fmt.Sprintf("%d of %d pools", s.PGMap.Pools, pools)
	case clean < s.PGMap.PGs:
		return fmt.Sprintf("%d of %d placement groups active and clean", clean, s.PGMap.PGs)
	case s.Health.Status != "HEALTH_OK":
		return s.Health.Status + s.messages()
	default:
		return ""
	}
}

func (s status) messages() string {
	var list []string
	for name, check := range s.Health.Checks {
		list = append(list, fmt.Sprintf("%s (%s)", name, check.Summary.Message))
	}
	slices.Sort(list)
	return ": " + strings.Join(list, ", ")
}

// awaitHealth waits until the manager is active, all OSDs are up, there are that
// many pools, all placement groups are active and clean, and the cluster says HEALTH_OK. When ctx ends first, the error says what was
// missing.
func (a admin) awaitHealth(ctx context.Context, pools int) error {
	missing := "no answer"
	err := poll(ctx, func() (bool, error) {
		text, err := a.ceph(ctx, "status", "--format", "json")
		if err != nil {
			return false, err
		}
		var now status
		if err := json.Unmarshal([]byte(text), &now); err != nil {
			return false, fmt.Errorf("read the status: %w: %w", fault.Internal, err)
		}
		missing = now.missing(a.osds, pools)
		return missing == "", nil
	})
	if err != nil {
		return fmt.Errorf("wait for health: %w (%s)", err, missing)
	}
	return nil
}
