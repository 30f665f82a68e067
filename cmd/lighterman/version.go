package main

import "runtime/debug"

// version is set at release by -ldflags "-X main.version=v1.2.3".
var version string

// buildVersion is the version that this binary was built from: the release, or what the Go tool recorded of the module or
// the commit. info is what debug.ReadBuildInfo returned; nil where there is none.
func buildVersion(release string, info *debug.BuildInfo) string {
	if release != "" {
		return release
	}
	if info == nil {
		return "unknown"
	}
	// A go install of a module at a version records it, and a build in a checkout one that is made from the commit.
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	commit, modified := "", ""
	for _, setting := range info.Settings {
		switch setting.Key {
		case "vcs.revision":
			commit = setting.Value
		case "vcs.modified":
			if setting.Value == "true" {
				modified = "+dirty"
			}
		}
	}
	if commit == "" {
		return "devel"
	}
	return "devel-" + commit[:min(12, len(commit))] + modified
}
