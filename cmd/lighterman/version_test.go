package main

import (
	"runtime/debug"
	"testing"
)

func TestBuildVersion(t *testing.T) {
	t.Parallel()
	commit := []debug.BuildSetting{{Key: "vcs.revision", Value: "0123456789abcdef0123"}, {Key: "vcs.modified", Value: "false"}}
	dirty := []debug.BuildSetting{{Key: "vcs.modified", Value: "true"}, {Key: "vcs.revision", Value: "0123456789abcdef0123"}}
	for name, tc := range map[string]struct {
		release string
		info    *debug.BuildInfo
		want    string
	}{
		"release":           {release: "v1.2.3", info: &debug.BuildInfo{Main: debug.Module{Version: "v0.0.1"}}, want: "v1.2.3"},
		"installed":         {info: &debug.BuildInfo{Main: debug.Module{Version: "v0.3.0"}}, want: "v0.3.0"},
		"checkout":          {info: &debug.BuildInfo{Main: debug.Module{Version: "(devel)"}, Settings: commit}, want: "devel-0123456789ab"},
		"changed checkout":  {info: &debug.BuildInfo{Settings: dirty}, want: "devel-0123456789ab+dirty"},
		"without a commit":  {info: &debug.BuildInfo{Main: debug.Module{Version: "(devel)"}}, want: "devel"},
		"without any notes": {want: "unknown"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := buildVersion(tc.release, tc.info); got != tc.want {
				t.Errorf("buildVersion = %q, want %q", got, tc.want)
			}
		})
	}
}
