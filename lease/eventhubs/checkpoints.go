package eventhubs

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"github.com/lighterman-dev/lighterman/lease"
	"github.com/lighterman-dev/lighterman/lease/internal/azstorage"
	"github.com/lighterman-dev/lighterman/lease/partitioned"
)

// checkpoints keeps the checkpoints of one consumer group in blobs, where the SDKs for Event Hubs keep theirs, so that programs
// that read those see ours, and the other way about. It implements partitioned.Checkpoints.
//
// A checkpoint is an empty blob <namespace>/<event hub>/<consumer group>/checkpoint/<partition> with metadata. The SDKs for .NET and
// Java write all of the name in lower case, since the service does not tell the cases apart; so do we. The one for Go writes the names
// as they were given: its checkpoints are the same where that is lower case, and for its $Default they are not.
type checkpoints struct {
	container *container.Client
	name      string // of the container
	prefix    string
	close     func()
}

// The metadata of a checkpoint.
const (
	metaSequence = "sequencenumber"
	metaOffset   = "offset"
	metaOwner    = "ownerid"
)

func newCheckpoints(s settings) (*checkpoints, error) {
	transport, release := azstorage.SharedTransport()
	client, err := newContainer(s.account, s.CheckpointContainer, transport)
	if err != nil {
		release()
		return nil, err
	}
	prefix := strings.ToLower(s.namespace.host + "/" + s.EventHub + "/" + s.ConsumerGroup + "/checkpoint/")
	return &checkpoints{container: client, name: s.CheckpointContainer, prefix: prefix, close: release}, nil
}

func newContainer(account azstorage.Account, name string, transport policy.Transporter) (*container.Client, error) {
	opts := &container.ClientOptions{ClientOptions: azstorage.Options(transport)}
	accountName, key, ok := account.SharedKey()
	if !ok {
		client, err := container.NewClientWithNoCredential(account.URL(azstorage.Blob, name), opts)
		if err != nil {
			return nil, account.Unusable()
		}
		return client, nil
	}
	credential, err := container.NewSharedKeyCredential(accountName, key)
	if err != nil {
		return nil, account.Unusable()
	}
	client, err := container.NewClientWithSharedKeyCredential(account.URL(azstorage.Blob, name), credential, opts)
	if err != nil {
		return nil, account.Unusable()
	}
	return client, nil
}

// Check implements partitioned.Checkpoints.
func (c *checkpoints) Check(ctx context.Context) error {
	_, err := c.container.GetProperties(ctx, nil)
	if bloberror.HasCode(err, bloberror.ContainerNotFound) {
		return createContainer(ctx, c.container, c.name)
	}
	return wrapStorage(fmt.Sprintf("checking container %q for checkpoints", c.name), err)
}

func createContainer(ctx context.Context, client *container.Client, name string) error {
	_, err := client.Create(ctx, nil)
	if bloberror.HasCode(err, bloberror.ContainerAlreadyExists) {
		return nil
	}
	return wrapStorage(fmt.Sprintf("creating container %q", name), err)
}

// Load implements partitioned.Checkpoints.
func (c *checkpoints) Load(ctx context.Context, partition string) (partitioned.Stored, error) {
	name := c.prefix + partition
	p, err := c.container.NewBlobClient(name).GetProperties(ctx, nil)
	if bloberror.HasCode(err, bloberror.BlobNotFound, bloberror.ContainerNotFound) {
		return partitioned.Stored{}, nil
	}
	if err != nil {
		return partitioned.Stored{}, wrapStorage(fmt.Sprintf("reading checkpoint %s of container %q", name, c.name), err)
	}
	var s partitioned.Stored
	found := false
	for key, value := range p.Metadata {
		if value == nil {
			continue
		}
		switch strings.ToLower(key) { // they are HTTP headers on the way
		case metaSequence:
			found = true
			if s.Sequence, err = strconv.ParseInt(*value, 10, 64); err != nil {
				return partitioned.Stored{}, c.broken(name, fmt.Sprintf("a %s that is no number", metaSequence))
			}
		case metaOffset:
			s.Offset = *value
		case metaOwner:
			s.Owner = *value
		}
	}
	if !found {
		return partitioned.Stored{}, c.broken(name, "no "+metaSequence)
	}
	if p.ETag == nil || *p.ETag == "" {
		return partitioned.Stored{}, fmt.Errorf("reading checkpoint %s of container %q: the answer has no ETag", name, c.name)
	}
	s.Version = string(*p.ETag)
	if p.LastModified != nil {
		s.WrittenAt = *p.LastModified
	}
	return s, nil
}

func (c *checkpoints) broken(name, problem string) error {
	return fmt.Errorf("checkpoint %s of container %q has %s in its metadata: correct that, or delete the blob to begin anew: %w",
		name, c.name, problem, lease.ErrInvalid)
}

// Store implements partitioned.Checkpoints.
func (c *checkpoints) Store(ctx context.Context, partition string, to partitioned.Checkpoint, version string) (newVersion string, err error) {
	name := c.prefix + partition
	sequence := strconv.FormatInt(to.Sequence, 10)
	metadata := map[string]*string{metaSequence: &sequence, metaOffset: &to.Offset, metaOwner: &to.Owner}
	var etag *azcore.ETag
	if version == "" {
		etag, err = c.create(ctx, name, metadata)
	} else {
		etag, err = c.replace(ctx, name, metadata, azcore.ETag(version))
	}
	switch {
	case bloberror.HasCode(err, bloberror.ConditionNotMet, bloberror.BlobAlreadyExists),
		version != "" && bloberror.HasCode(err, bloberror.BlobNotFound, bloberror.ContainerNotFound):
		return "", fmt.Errorf("writing checkpoint %s of container %q: %w", name, c.name, partitioned.ErrChanged)
	case err != nil:
		return "", wrapStorage(fmt.Sprintf("writing checkpoint %s of container %q", name, c.name), err)
	case etag == nil || *etag == "":
		return "", fmt.Errorf("writing checkpoint %s of container %q: the answer has no ETag", name, c.name)
	}
	return string(*etag), nil
}

// create writes the blob if there is none.
func (c *checkpoints) create(ctx context.Context, name string, metadata map[string]*string) (*azcore.ETag, error) {
	none := azcore.ETagAny
	upload := func() (*azcore.ETag, error) {
		r, err := c.container.NewBlockBlobClient(name).Upload(ctx, streaming.NopCloser(bytes.NewReader(nil)), &blockblob.UploadOptions{
			Metadata: metadata,
			AccessConditions: &blob.AccessConditions{
				ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfNoneMatch: &none},
			},
		})
		return r.ETag, err
	}
	etag, err := upload()
	if bloberror.HasCode(err, bloberror.ContainerNotFound) {
		if err := createContainer(ctx, c.container, c.name); err != nil {
			return nil, err
		}
		return upload()
	}
	return etag, err
}

// replace writes the blob's metadata if it still has that version.
func (c *checkpoints) replace(ctx context.Context, name string, metadata map[string]*string, version azcore.ETag) (*azcore.ETag, error) {
	r, err := c.container.NewBlobClient(name).SetMetadata(ctx, metadata, &blob.SetMetadataOptions{
		AccessConditions: &blob.AccessConditions{
			ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfMatch: &version},
		},
	})
	return r.ETag, err
}

// Close implements partitioned.Checkpoints.
func (c *checkpoints) Close() error {
	c.close()
	return nil
}
