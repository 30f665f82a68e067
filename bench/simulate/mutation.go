package main

// mutation breaks the product on purpose, in the source that a test binary is built from and nowhere else. The simulation must find it: a check
// that nothing can fail is none. Where a protection has several parts, each has a mutation of its own.
type mutation struct {
	invariant int // as numbered in the design; 0 is the fence
	about     string
	edits     []edit
}

// mutations is the table that TestMutations goes through. What a mutation replaces must be in the product exactly once: whoever changes that
// line brings the mutation along.
var mutations = []mutation{
	// 1. Settle after the fact.
	{1, "a Job that merely runs counts as completed", []edit{
		{"dispatcher/observe.go", "if status.Phase.Finished() {\n\t\tl.finished(t, job, status)\n\t\treturn\n\t}\n\tl.progress", "if status.Phase != jobs.Pending {\n\t\tl.finished(t, job, status)\n\t\treturn\n\t}\n\tl.progress"},
		{"dispatcher/task.go", "if status.Phase == jobs.Succeeded {", "if status.Phase != jobs.Failed {"},
	}},
	{1, "a Job that failed completes its message", []edit{
		{"dispatcher/task.go", "if status.Phase == jobs.Succeeded {", "if status.Phase.Finished() {"},
	}},
	{1, "a Job that was deleted while it ran counts as succeeded", []edit{
		{"dispatcher/observe.go", "jobs.Status{Phase: jobs.Failed, Reason: reasonDeleted", "jobs.Status{Phase: jobs.Succeeded, Reason: reasonDeleted"},
	}},
	{1, "a message counts as poisoned although the copy was not confirmed", []edit{
		{"dispatcher/settle.go", "case err == nil:\n\t\tl.busy--", "case err == nil || c.outcome == poisoned:\n\t\tl.busy--"},
	}},
	{1, "a message of which a Job succeeded is given back", []edit{
		{"dispatcher/receive.go", "case s.outcome == requeued && !time.Now().Before(s.notBefore):", "case s.outcome == completed:\n\t\tl.decided(t, settlement{outcome: returned})\n\tcase s.outcome == requeued && !time.Now().Before(s.notBefore):"},
	}},
	{1, "what the task of a pack says of its messages is not heeded", []edit{
		{"dispatcher/judge.go", "case verdict.Failed[t.key()]:", "case false:"},
	}},
	{1, "a report that cannot be understood counts as none", []edit{
		{"dispatcher/judge.go", "case verdict.Unclear != \"\":", "case false:"},
	}},

	{1, "the checkpoint passes an event that is not settled", []edit{
		{"lease/partitioned/window.go", "w.entries[w.head].status == settled {", "w.entries[w.head].status != fresh {"},
	}},
	{1, "an event is passed although its copy was not confirmed", []edit{
		{"lease/partitioned/settle.go", "if err := s.cfg.Poison.Copy(ctx, c); err != nil {", "if err := s.cfg.Poison.Copy(ctx, c); err != nil && ctx.Err() != nil {"},
	}},

	// 2. One Job per attempt.
	{2, "a name that exists already is an error, and another name is tried", []edit{
		{"jobs/launcher.go", "\t\texisting, err := client.Get(", "\t\tif true {\n\t\t\tagain := *job\n\t\t\tagain.Name += \"-again\"\n\t\t\tjob = &again\n\t\t\tcontinue\n\t\t}\n\t\texisting, err := client.Get("},
	}},
	{2, "the name depends on when the Job is created", []edit{
		{"jobs/template.go", "job.Name = task.Name()", "job.Name = task.Name() + \"-\" + strconv.FormatInt(time.Now().Unix(), 36)"},
	}},
	{2, "the attempt in the name is the number of deliveries", []edit{
		{"dispatcher/launch.go", "Messages: o.task.messages, Attempt: o.attempt}", "Messages: o.task.messages, Attempt: func() int {\n\t\t\tif o.held == nil {\n\t\t\t\treturn o.attempt\n\t\t\t}\n\t\t\treturn int(o.held.Deliveries)\n\t\t}()}"},
	}},
	{2, "a Job is taken for ours by its name alone", []edit{
		{"jobs/launcher.go", "if !sameIdentity(existing, job) {", "if false && !sameIdentity(existing, job) {"},
	}},
	{2, "a new leader makes packs before it has seen the Jobs of former terms", []edit{
		{"dispatcher/catchup.go", "err := l.catchUpOnce(ctx)", "err := ctx.Err()"},
	}},
	{2, "a pack that a former leader launched is not adopted", []edit{
		{"dispatcher/pack.go", "\tif len(members) == 0 {\n\t\treturn\n\t}\n\tp := ", "\tfor _, m := range members {\n\t\tif m.lease == nil {\n\t\t\tl.remove(m)\n\t\t}\n\t}\n\tif true {\n\t\treturn\n\t}\n\tp := "},
		{"dispatcher/receive.go", "\tlast, attempt := l.lastJob(held.ID)\n\tif last == nil {", "\tlast, attempt := l.lastJob(held.ID)\n\tif last == nil || jobs.PackLen(last) > 1 && !jobs.StatusOf(last).Phase.Finished() {"},
	}},

	// 3. A crash is not an attempt.
	{3, "each delivery is an attempt", []edit{
		{"dispatcher/receive.go", "attempt: 1, lease: held", "attempt: int(held.Deliveries), lease: held"},
	}},
	{3, "a Job that runs is not adopted, and its message gets another", []edit{
		{"dispatcher/observe.go", "\tl.tasks[t.key()] = t\n\tl.takeSlot(t)", "\tif true {\n\t\treturn\n\t}\n\tl.takeSlot(t)"},
		{"dispatcher/receive.go", "\tif !status.Phase.Finished() {\n\t\tl.metrics.Adopted.Inc()", "\tif !status.Phase.Finished() {\n\t\tt.attempt++\n\t\tl.enqueue(t)\n\t\treturn\n\t}\n\tif !status.Phase.Finished() {\n\t\tl.metrics.Adopted.Inc()"},
	}},
	{3, "a message that comes again after its Job succeeded gets another Job", []edit{
		{"dispatcher/receive.go", "case s.outcome == requeued && !time.Now().Before(s.notBefore):", "case s.outcome == completed, s.outcome == requeued && !time.Now().Before(s.notBefore):"},
	}},

	// 4. Job objects outlive the doubt.
	{4, "a Job removes itself as soon as it has finished", []edit{
		{"jobs/template.go", "spec.TTLSecondsAfterFinished = nil", "spec.TTLSecondsAfterFinished = new(int32)"},
	}},
	{4, "the template's own TTL is not held back", []edit{
		{"jobs/template.go", "spec.TTLSecondsAfterFinished = nil", ""},
	}},
	{4, "a settled Job need not stay", []edit{
		{"dispatcher/mark.go", "return l.settings.Load().spec.LeaseDuration + l.tuning.LaunchTimeout + l.tuning.LockDuration + clockSkew", "return 0"},
	}},
	{4, "a pack's Job is marked with the first of its messages", []edit{
		{"dispatcher/pack.go", "if r.left > 0 {", "if false {"},
	}},
	{4, "the window leaves out that clocks differ", []edit{
		{"dispatcher/mark.go", "l.tuning.LockDuration + clockSkew", "l.tuning.LockDuration"},
	}},
	{4, "the window counts from when the Job finished", []edit{
		{"jobs/finish.go", "ttl += max(time.Since(finished), 0)", "ttl += 0 * time.Since(finished)"},
	}},
	{4, "a Job is marked when it has finished, before its message is settled", []edit{
		{"dispatcher/observe.go", "\t\tl.finished(t, job, status)\n\t\treturn\n\t}\n\tl.progress", "\t\tl.toMark = append(l.toMark, mark{job: job, outcome: completed})\n\t\twake(l.wakeMark)\n\t\tl.finished(t, job, status)\n\t\treturn\n\t}\n\tl.progress"},
	}},

	{4, "a Job is marked before a checkpoint has passed its event", []edit{
		{"dispatcher/confirm.go", "if l.confirmer == nil || l.confirmer.Final(messageID) {", "if true {"},
	}},
	{4, "a settlement that was undone counts as final", []edit{
		{"dispatcher/confirm.go", "if ok && !c.Undone {", "if ok {"},
	}},

	// 5. A lease is trusted for less time than the server grants.
	{5, "a message is settled without a look at the lease's deadline", []edit{
		{"dispatcher/settle.go", "if !time.Now().Before(deadline) {", "if false {"},
		{"dispatcher/settle.go", "context.WithDeadline(ctx, until)", "context.WithCancel(ctx)"},
	}},
	{5, "a lease is trusted for all that was granted, from when the answer came", []edit{
		{"lease/lease.go", "l.deadline = sentAt.Add(d - d/8)", "l.deadline = time.Now().Add(d)"},
	}},
	{5, "a lease that was refused its renewal is still trusted", []edit{
		{"lease/keeper.go", "\t\t\te.lease.forfeit()\n", ""},
		{"lease/keeper.go", "case errors.Is(err, ErrLost):\n\t\t\tdelete(k.held, e.lease)", "case false:\n\t\t\tdelete(k.held, e.lease)"},
	}},
	{5, "a lease that could not be released in time is settled while it is renewed", []edit{
		{"lease/keeper.go", "e.released = true\n\t\t\tbusy = append(busy, e.extended)", "if !e.released {\n\t\t\t\tbusy = append(busy, e.extended)\n\t\t\t}\n\t\t\te.released = true"},
		{"dispatcher/settle.go", "if t.lease == c.held {", "if t.lease == c.held && !errors.Is(err, errBusy) {"},
	}},
	{5, "the Job of a message whose lease was lost is ended", []edit{
		{"dispatcher/lane.go", "\t\tt.lease = nil\n\t\tif t.state == queued {", "\t\tt.lease = nil\n\t\tfor _, job := range l.tracker.OfMessage(l.identity, held.ID) {\n\t\t\tgo func() { _ = l.launcher.End(context.Background(), job.Namespace, job.Name, \"Lost\", \"\") }()\n\t\t}\n\t\tif t.state == queued {"},
	}},

	{5, "the lease of an event counts from when it is handed out, however long ago it was certain that its partition is ours", []edit{
		{"lease/partitioned/receive.go", "e.lease.Granted(p.ownedAt, ", "e.lease.Granted(time.Now(), "},
	}},

	// 6. Lease no more than can be launched.
	{6, "those in flight do not count", []edit{
		{"dispatcher/lane.go", "n := s.spec.MaxInFlight - l.inFlight", "n := s.spec.MaxInFlight"},
	}},
	{6, "Jobs of a former leader take up no slot", []edit{
		{"dispatcher/observe.go", "\tl.tasks[t.key()] = t\n\tl.takeSlot(t)", "\tl.tasks[t.key()] = t"},
	}},
	{6, "more is received than the rate lets go", []edit{
		{"dispatcher/lane.go", "if rate := s.spec.JobsPerSecond; rate > 0 {", "if rate := s.spec.JobsPerSecond; rate < 0 {"},
	}},

	// 7. The user's mistakes cost nothing.
	{7, "a refused Job poisons its message", []edit{
		{"dispatcher/launch.go", "\t\tl.block(refusal)\n\t\tl.settleTask(o, settlement{outcome: returned})", "\t\tl.block(refusal)\n\t\tl.settleTask(o, settlement{outcome: poisoned, reason: refusal.Error()})"},
	}},
	{7, "a refused Job is an attempt", []edit{
		{"dispatcher/launch.go", "\t\tl.block(refusal)\n\t\tl.settleTask(o, settlement{outcome: returned})", "\t\tl.block(refusal)\n\t\tif held := o.held; int(held.Deliveries) >= l.settings.Load().spec.MaxAttempts {\n\t\t\tl.settleTask(o, settlement{outcome: poisoned, reason: refusal.Error()})\n\t\t}\n\t\tl.settleTask(o, settlement{outcome: returned})"},
	}},
	{7, "dispatch does not stop while Jobs are refused", []edit{
		{"dispatcher/probe.go", "l.blocked = err\n", "l.blocked = nil\n"},
	}},
	{7, "dispatch does not resume when it is mended", []edit{
		{"dispatcher/probe.go", "for l.isBlocked() {", "for false && l.isBlocked() {"},
	}},
	{7, "a message is with others in its last attempt", []edit{
		{"dispatcher/pack.go", "if attempt >= spec.MaxAttempts {", "if attempt > spec.MaxAttempts {"},
		{"dispatcher/pack.go", "left := float64(spec.MaxAttempts-attempt) / float64(spec.MaxAttempts-1)", "left := float64(spec.MaxAttempts-attempt+1) / float64(spec.MaxAttempts)"},
	}},

	// 8. A fault in one source or template never slows another.
	{8, "one Job is created at a time, over all templates", []edit{
		{"dispatcher/slots.go", "\tseq     uint64\n}\n\ntype waiter", "\tseq     uint64\n\tgate    chan struct{}\n}\n\ntype waiter"},
		{"dispatcher/slots.go", "&slots{free: capacity}", "&slots{free: capacity, gate: make(chan struct{}, 1)}"},
		{"dispatcher/launch.go", "\treturn l.launcher.Launch(ctx, job)", "\tl.slots.gate <- struct{}{}\n\tdefer func() { <-l.slots.gate }()\n\treturn l.launcher.Launch(ctx, job)"},
	}},
	{8, "a source that fails keeps its slots", []edit{
		{"dispatcher/receive.go", "\t\tl.slots.release(reserved - used)\n\n\t\tswitch {", "\t\tif err == nil {\n\t\t\tl.slots.release(reserved - used)\n\t\t}\n\n\t\tswitch {"},
	}},
	{8, "settling is tried again without a pause", []edit{
		{"dispatcher/settle.go", "spread(doubled(200*time.Millisecond, 15*time.Second, c.failures))", "time.Millisecond"},
	}},

	// 9. The payload arrives byte for byte.
	{9, "dollar signs are not doubled", []edit{
		{"jobs/payload.go", "func escape(value string) string { return strings.ReplaceAll(value, \"$\", \"$$\") }", "func escape(value string) string { return strings.ReplaceAll(value, \"$$\", \"$$\") }"},
	}},
	{9, "a Job whose leader crashed before the Secret waits for ever", []edit{
		{"dispatcher/provide.go", "if !t.lacksSecret() {", "if t.launchedAt.Before(time.Now()) || !t.lacksSecret() {"},
	}},

	// The fence, and leadership.
	{0, "Jobs carry no fence, and the clock is not looked at", []edit{
		{"jobs/launcher.go", "if l.fence != \"\" {", "if false {"},
		{"dispatcher/launch.go", "if !l.term.valid() {", "if false {"},
	}},
	{0, "a dispatcher that is fenced goes on", []edit{
		{"dispatcher/leader.go", "\tl.stepDown()\n\treturn true", "\treturn true"},
	}},
	{0, "the fence is of the term before", []edit{
		{"dispatcher/lock.go", "return fence.Value(l.cfg.Namespace, l.LeaseMeta.Name, l.term)", "return fence.Value(l.cfg.Namespace, l.LeaseMeta.Name, l.term-1)"},
	}},
	{0, "the lock is given up before the lanes have ended", []edit{
		{"dispatcher/leader.go", "ReleaseOnCancel: false,", "ReleaseOnCancel: true,"},
		{"dispatcher/leader.go", "\t\twindUp()\n\t\trelease()", "\t\trelease()"},
	}},
}
