package integration

import (
	"context"
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lighterman-dev/lighterman/lease/leasetest/servers"
)

// mistake is something a user got wrong, how it is told, and how it is mended.
type mistake struct {
	// make creates the template "wrong", and whatever is wrong around it. It may change the template.
	make func(w *world, s *stream, c *batchv1.CronJob)
	// reason is that of the Event, and texts are in its message: key, value, remedy.
	reason string
	texts  []string
	mend   func(w *world, s *stream)
	// everywhere says that all templates of the namespace suffer from it.
	everywhere bool
}

const annotationKey = "lighterman.dev/"

var mistakes = map[string]mistake{
	"unknown annotation": {
		make:   func(_ *world, _ *stream, c *batchv1.CronJob) { c.Annotations[annotationKey+"max-inflight"] = "3" },
		reason: "Misconfigured", texts: []string{"lighterman.dev/max-inflight", `"3"`, "max-in-flight"},
		mend: func(w *world, _ *stream) { w.annotate("wrong", map[string]string{annotationKey + "max-inflight": ""}) },
	},
	"unknown source": {
		make:   func(_ *world, _ *stream, c *batchv1.CronJob) { c.Annotations[annotationKey+"source"] = "redis-stream" },
		reason: "Misconfigured", texts: []string{"lighterman.dev/source", `"redis-stream"`, "redis-streams"},
		mend: func(w *world, _ *stream) {
			w.annotate("wrong", map[string]string{annotationKey + "source": "redis-streams"})
		},
	},
	"value that does not parse": {
		make: func(_ *world, _ *stream, c *batchv1.CronJob) {
			c.Annotations[annotationKey+"lease-duration"] = "2 minutes"
		},
		reason: "Misconfigured", texts: []string{"lighterman.dev/lease-duration", `"2 minutes"`},
		mend: func(w *world, _ *stream) {
			w.annotate("wrong", map[string]string{annotationKey + "lease-duration": "10s"})
		},
	},
	"missing stream": {
		make:   func(_ *world, _ *stream, c *batchv1.CronJob) { delete(c.Annotations, annotationKey+"stream") },
		reason: "Misconfigured", texts: []string{"lighterman.dev/stream", "is missing"},
		mend: func(w *world, _ *stream) { w.annotate("wrong", map[string]string{annotationKey + "stream": "wrong"}) },
	},
	"missing Secret": {
		make: func(_ *world, _ *stream, c *batchv1.CronJob) {
			c.Annotations[annotationKey+"connection-secret"] = "later/url"
		},
		reason: "Misconfigured", texts: []string{"lighterman.dev/connection-secret", `"later/url"`, "does not exist", "create it"},
		mend: func(w *world, s *stream) {
			w.createSecret("later", map[string]string{"url": "redis://" + s.redis.Options().Addr})
		},
	},
	"missing key in Secret": {
		make: func(_ *world, _ *stream, c *batchv1.CronJob) {
			c.Annotations[annotationKey+"connection-secret"] = "redis/uri"
		},
		reason: "Misconfigured", texts: []string{"lighterman.dev/connection-secret", `"redis/uri"`, "add the key uri"},
		mend: func(w *world, _ *stream) {
			w.annotate("wrong", map[string]string{annotationKey + "connection-secret": "redis/url"})
		},
	},
	"connection string that does not parse": {
		make: func(w *world, _ *stream, c *batchv1.CronJob) {
			w.createSecret("bad", map[string]string{"url": "http://user:hunter2@example.com"})
			c.Annotations[annotationKey+"connection-secret"] = "bad/url"
		},
		reason: "Misconfigured", texts: []string{"lighterman.dev/connection-secret", `"bad/url"`},
		mend: func(w *world, _ *stream) {
			w.annotate("wrong", map[string]string{annotationKey + "connection-secret": "redis/url"})
		},
	},
	"wrong password": {
		make: func(w *world, _ *stream, c *batchv1.CronJob) {
			locked := servers.RunRedis(w.T, servers.RedisOptions{Password: "right"})
			w.createSecret("locked", map[string]string{"url": "redis://:hunter2@" + locked.Addr()})
			c.Annotations[annotationKey+"connection-secret"] = "locked/url"
		},
		reason: "Misconfigured", texts: []string{"lighterman.dev/connection-secret", `"locked/url"`, "does not open the source"},
		mend: func(w *world, _ *stream) {
			w.annotate("wrong", map[string]string{annotationKey + "connection-secret": "redis/url"})
		},
	},
	"not suspended": {
		make:   func(_ *world, _ *stream, c *batchv1.CronJob) { c.Spec.Suspend = nil },
		reason: "Misconfigured", texts: []string{"spec.suspend", "set spec.suspend: true"},
		mend: func(w *world, _ *stream) {
			w.editCronJob("wrong", func(c *batchv1.CronJob) {
				suspend := true
				c.Spec.Suspend = &suspend
			})
		},
	},
	"payload variable in use": {
		make: func(_ *world, _ *stream, c *batchv1.CronJob) {
			c.Spec.JobTemplate.Spec.Template.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "KEDA_TASK_DATA", Value: "mine"}}
		},
		reason: "Misconfigured", texts: []string{"KEDA_TASK_DATA", "remove it"},
		mend: func(w *world, _ *stream) {
			w.editCronJob("wrong", func(c *batchv1.CronJob) { c.Spec.JobTemplate.Spec.Template.Spec.Containers[0].Env = nil })
		},
	},
	"template that the API server rejects": {
		make: func(w *world, _ *stream, c *batchv1.CronJob) {
			c.Spec.JobTemplate.Labels = map[string]string{"rejected": "yes"}
			w.rejectLabelled("rejected")
		},
		reason: "Misconfigured", texts: []string{"the API server would not take a Job", "label rejected is not allowed here"},
		mend: func(w *world, _ *stream) {
			w.editCronJob("wrong", func(c *batchv1.CronJob) { c.Spec.JobTemplate.Labels = nil })
		},
	},
	"quota exceeded": {
		make: func(w *world, _ *stream, _ *batchv1.CronJob) {
			w.quota("count/jobs.batch", "0")
		},
		reason: "Misconfigured", texts: []string{"exceeded quota", "count/jobs.batch"},
		mend:       func(w *world, _ *stream) { w.quota("count/jobs.batch", "") },
		everywhere: true,
	},
	"quota on Secrets exceeded": {
		make: func(w *world, _ *stream, _ *batchv1.CronJob) {
			w.quota("count/secrets", "1") // which there is
		},
		reason: "Misconfigured", texts: []string{"would not take a Secret with the payload", "exceeded quota", "count/secrets"},
		mend:       func(w *world, _ *stream) { w.quota("count/secrets", "") },
		everywhere: true,
	},
	"payload's place in use": {
		make: func(_ *world, _ *stream, c *batchv1.CronJob) {
			pod := &c.Spec.JobTemplate.Spec.Template.Spec
			pod.Volumes = []corev1.Volume{{Name: "mine", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
			pod.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "mine", MountPath: "/var/run/lighterman/cache"}}
		},
		reason: "Misconfigured", texts: []string{"mounts volume mine at /var/run/lighterman/cache", "mount it elsewhere"},
		mend: func(w *world, _ *stream) {
			w.editCronJob("wrong", func(c *batchv1.CronJob) {
				c.Spec.JobTemplate.Spec.Template.Spec.Containers[0].VolumeMounts[0].MountPath = "/var/cache/mine"
			})
		},
	},
	"payload's volume in use": {
		make: func(_ *world, _ *stream, c *batchv1.CronJob) {
			c.Spec.JobTemplate.Spec.Template.Spec.Volumes = []corev1.Volume{{
				Name: "lighterman-payload", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}},
			}}
		},
		reason: "Misconfigured", texts: []string{"a volume named lighterman-payload", "rename it"},
		mend: func(w *world, _ *stream) {
			w.editCronJob("wrong", func(c *batchv1.CronJob) { c.Spec.JobTemplate.Spec.Template.Spec.Volumes = nil })
		},
	},
}

// quota allows so many objects of a kind in the namespace; empty: any number.
func (w *world) quota(what corev1.ResourceName, hard string) {
	w.Helper()
	quotas := w.client.CoreV1().ResourceQuotas(w.namespace)
	if hard == "" {
		if err := quotas.Delete(w.Context(), "quota", metav1.DeleteOptions{}); err != nil {
			w.Fatal(err)
		}
		return
	}
	must[*corev1.ResourceQuota](w)(quotas.Create(w.Context(), &corev1.ResourceQuota{
		ObjectMeta: metav1.ObjectMeta{Name: "quota"},
		Spec:       corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{what: resource.MustParse(hard)}},
	}, metav1.CreateOptions{}))
	w.eventually("the quota is in force", func(ctx context.Context) (bool, error) {
		q, err := quotas.Get(ctx, "quota", metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		_, ok := q.Status.Used[what]
		return ok, nil
	})
}

func TestMistakesCostNothing(t *testing.T) {
	for name, m := range mistakes {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			w := newWorld(t)
			wrong := w.withRedis("wrong")
			right := wrong.named("right")
			wrong.send("patient")
			c := template("wrong", wrong.name)
			m.make(w, wrong, c)
			w.createCronJob(c)
			p := runLighterman(t, w.namespace)
			w.waitForEvent("wrong", m.reason, m.texts...)

			if !m.everywhere {
				w.createCronJob(template("right", right.name))
				right.send("unharmed")
				right.waitUntilEmpty()
			}
			if got := wrong.len(); got != 1 {
				t.Errorf("the stream of the wrong template has %d messages, want 1", got)
			}
			if got := wrong.leased(); got != 0 {
				t.Errorf("%d messages are leased for a wrong template", got)
			}
			if got := p.metric(`lighterman_template_state{namespace=%q,state="misconfigured",template="cronjob/wrong"}`, w.namespace); got != "1" {
				t.Errorf("the metric of a misconfigured template is %q, want 1", got)
			}
			if got := len(p.logged(m.texts[len(m.texts)-1])); got != 1 {
				t.Errorf("%d log lines about it, want 1", got)
			}
			if strings.Contains(p.text(), "hunter2") {
				t.Error("the log shows a password")
			}

			m.mend(w, wrong)
			wrong.waitUntilEmpty()
			for _, job := range w.jobs() {
				if job.Annotations["lighterman.dev/attempt"] != "1" {
					t.Errorf("Job %s is attempt %s: the mistake cost one", job.Name, job.Annotations["lighterman.dev/attempt"])
				}
			}
		})
	}
}

// A quota that fills up while messages are dispatched stops dispatch; what had been leased goes back.
func TestQuotaFillsUp(t *testing.T) {
	w := newWorld(t)
	s := w.withRedis("full")
	w.quota("count/jobs.batch", "2")
	w.createCronJob(template("full", s.name))
	p := runLighterman(t, w.namespace)
	s.send("1", "2", "3", "4", "5")
	w.waitForEvent("full", "JobRejected", "exceeded quota", "messages wait in the queue")
	w.eventually("what was not launched is given back", func(context.Context) (bool, error) { return s.leased() == 0 && s.len() == 3, nil })
	if got := p.metric(`lighterman_template_state{namespace=%q,state="blocked",template="cronjob/full"}`, w.namespace); got != "1" {
		t.Errorf("the metric of a blocked template is %q, want 1", got)
	}
	w.quota("count/jobs.batch", "")
	s.waitUntilEmpty()
	if got := w.succeeded(); got != 5 {
		t.Errorf("%d Jobs succeeded, want 5", got)
	}
	for _, job := range w.jobs() {
		if job.Annotations["lighterman.dev/attempt"] != "1" {
			t.Errorf("Job %s is attempt %s: the quota cost one", job.Name, job.Annotations["lighterman.dev/attempt"])
		}
	}
	if got := len(w.events("full", "JobRejected")); got != 1 {
		t.Errorf("%d Events, want 1", got)
	}
}

func TestTwoTemplatesOnOneSource(t *testing.T) {
	w := newWorld(t)
	s := w.withRedis("shared")
	w.createCronJob(template("a-first", s.name))
	p := runLighterman(t, w.namespace)
	p.waitForLog("dispatching")
	second := shell(template("b-second", s.name), `printf 'second %s' "$KEDA_TASK_DATA"`)
	w.createCronJob(second)
	w.waitForEvent("b-second", "Misconfigured", "lighterman.dev/source", "CronJob "+w.namespace+"/a-first", "delete one of the two")
	s.send("1")
	s.waitUntilEmpty()
	if err := w.client.BatchV1().CronJobs(w.namespace).Delete(w.Context(), "a-first", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	// Until the deletion has been seen, the older one would rightly take it.
	w.eventually("the newer template dispatches", func(context.Context) (bool, error) { return len(p.logged("dispatching")) == 2, nil })
	s.send("2")
	s.waitUntilEmpty()
	texts := map[string]bool{}
	for _, text := range w.logs() {
		texts[text] = true
	}
	if len(texts) != 2 || !texts["1"] || !texts["second 2"] {
		t.Errorf("containers printed %v", texts)
	}
}

func TestMissingQueueIsCreatedLater(t *testing.T) {
	w := newWorld(t)
	q, connection := w.withQueue("there")
	w.createSecret("storage", map[string]string{"connection": connection})
	c := template("late", "")
	c.Annotations = map[string]string{
		"lighterman.dev/source":            "azure-storage-queue",
		"lighterman.dev/queue":             "not-yet",
		"lighterman.dev/connection-secret": "storage/connection",
	}
	w.createCronJob(c)
	runLighterman(t, w.namespace)
	w.waitForEvent("late", "Misconfigured", "lighterman.dev/queue", `"not-yet"`, "does not exist", "create it")
	late := must[*queue](w)(q.sibling("not-yet"))
	late.send("at last")
	late.waitUntilEmpty()
	if got := w.succeeded(); got != 1 {
		t.Errorf("%d Jobs succeeded, want 1", got)
	}
}
