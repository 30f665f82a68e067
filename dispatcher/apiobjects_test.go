package dispatcher

import (
	"encoding/json"
	"fmt"
	"maps"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

// edit changes an object as a controller or a person would.
func edit[T any](s *apiServer, resource, namespace, name string, change func(*T)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := objectKey{resource, namespace, name}
	old := s.objects[key]
	if old == nil {
		return fmt.Errorf("%s %s/%s does not exist", resource, namespace, name)
	}
	typed := decode[T](old)
	change(&typed)
	s.store(key, old, encode(typed))
	return nil
}

// all is every object of a kind, by name.
func all[T any](s *apiServer, resource string) []T {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []T
	for _, item := range s.list(&apiRequest{resource: resource}) {
		found = append(found, decode[T](item))
	}
	return found
}

func decode[T any](o object) T {
	var typed T
	data, err := json.Marshal(o)
	if err == nil {
		err = json.Unmarshal(data, &typed)
	}
	if err != nil {
		panic(err)
	}
	return typed
}

func encode(typed any) object {
	if job, ok := typed.(batchv1.Job); ok {
		job.APIVersion, job.Kind = "batch/v1", "Job"
		typed = job
	}
	if cronJob, ok := typed.(batchv1.CronJob); ok {
		cronJob.APIVersion, cronJob.Kind = "batch/v1", "CronJob"
		typed = cronJob
	}
	if secret, ok := typed.(corev1.Secret); ok {
		secret.APIVersion, secret.Kind = "v1", "Secret"
		typed = secret
	}
	data, err := json.Marshal(typed)
	if err != nil {
		panic(err)
	}
	var o object
	if err := json.Unmarshal(data, &o); err != nil {
		panic(err)
	}
	return o
}

// merged applies a JSON merge patch (RFC 7386).
func merged(to, patch object) object {
	result := maps.Clone(to)
	if result == nil {
		result = object{}
	}
	for k, v := range patch {
		switch v := v.(type) {
		case nil:
			delete(result, k)
		case object:
			was, _ := result[k].(object)
			result[k] = merged(was, v)
		default:
			result[k] = v
		}
	}
	return result
}

// clone copies an object and its metadata, which is all that is written to.
func clone(o object) object {
	c := maps.Clone(o)
	if meta, ok := c["metadata"].(object); ok {
		c["metadata"] = maps.Clone(meta)
	}
	return c
}

func child(o object, name string) object {
	c, ok := o[name].(object)
	if !ok {
		c = object{}
		o[name] = c
	}
	return c
}

func text(o object, path ...string) string {
	for _, name := range path[:len(path)-1] {
		o, _ = o[name].(object)
	}
	s, _ := o[path[len(path)-1]].(string)
	return s
}
