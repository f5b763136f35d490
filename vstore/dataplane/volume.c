/*
 * volume.c - a disk on the data plane: the files that its block map (map.c) names, and its life from open to the last
 * release, with every change of its length between them.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/vfs.h>
#include <unistd.h>

enum { LEAST_SHIFT = 9, MAP_LIMIT = 16 << 20 };

/* ---- layers ---------------------------------------------------------------------------------------- */

/* File systems that refuse buffered writes which must not wait, but have no server to wait for. */
static bool on_local_disk(int fd)
{
	struct statfs system;

	return !fstatfs(fd, &system) && (system.f_type == EXT4_SUPER_MAGIC || system.f_type == F2FS_SUPER_MAGIC);
}

int vs_volume_set_layer(vs_volume *volume, uint32_t layer, int fd, uint32_t flags, uint32_t alignment)
{
	if (layer > LAYER_MASK || !alignment || (alignment & (alignment - 1)))
		return -EINVAL;
	struct layer *made = calloc(1, sizeof(*made));
	if (!made)
		return -ENOMEM;
	made->flags = flags;
	made->alignment = alignment;
	made->fd = flags & VS_FILE_NULL ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (made->fd < 0 && !(flags & VS_FILE_NULL)) {
		free(made);
		return -errno;
	}
	int error = 0;
	made->local = on_local_disk(made->fd);
	pthread_mutex_lock(&volume->lock);
	if (volume->layers[layer]) {
		error = -EEXIST;
	} else {
		layer_map(volume, made);
		volume->layers[layer] = made;
	}
	pthread_mutex_unlock(&volume->lock);
	if (error && made->fd >= 0)
		close(made->fd);
	if (error)
		free(made);
	return error;
}

void volume_map(struct vs_volume *volume)
{
	pthread_mutex_lock(&volume->lock);
	bool first = !volume->mapped;
	volume->mapped = true;
	for (unsigned i = 0; first && i <= LAYER_MASK; i++)
		if (volume->layers[i])
			layer_map(volume, volume->layers[i]);
	pthread_mutex_unlock(&volume->lock);
}

/* ---- life ---------------------------------------------------------------------------------------------- */

vs_volume *vs_volume_new(uint64_t length, uint32_t block_shift)
{
	if (block_shift < LEAST_SHIFT || block_shift > 31 || length > (uint64_t)INT64_MAX) {
		errno = EINVAL;
		return NULL;
	}
	struct vs_volume *volume = calloc(1, sizeof(*volume));
	if (!volume)
		return NULL;
	volume->notice_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (volume->notice_fd < 0) {
		free(volume);
		return NULL;
	}
	volume->shift = block_shift;
	volume->length = length;
	volume->references = 1;
	volume->map_limit = MAP_LIMIT;
	volume->batch_tail = &volume->batch;
	volume->zeros_tail = &volume->zeros;
	volume->window_tail = &volume->window;
	volume->page_count = map_pages(volume, length);
	volume->pages = calloc(volume->page_count, sizeof(*volume->pages));
	if (!volume->pages) {
		close(volume->notice_fd);
		free(volume);
		errno = ENOMEM;
		return NULL;
	}
	pthread_mutex_init(&volume->lock, NULL);
	pthread_mutex_init(&volume->draining, NULL);
	pthread_mutex_init(&volume->packed_lock, NULL);
	pthread_cond_init(&volume->settled, NULL);
	return volume;
}

void vs_volume_release(vs_volume *volume)
{
	if (!volume || atomic_fetch_sub(&volume->references, 1) != 1)
		return;
	map_free(volume);
	track_free(atomic_load(&volume->track));
	packed_forget(volume);
	for (unsigned i = 0; i <= LAYER_MASK; i++)
		layer_free(volume->layers[i]);
	retired_free(volume->retired);
	window_free(volume);
	zeros_free(volume);
	close(volume->notice_fd);
	pthread_cond_destroy(&volume->settled);
	pthread_mutex_destroy(&volume->packed_lock);
	pthread_mutex_destroy(&volume->draining);
	pthread_mutex_destroy(&volume->lock);
	free(volume);
}

static int grow_pages(struct vs_volume *volume, uint64_t count)
{
	_Atomic uint64_t *pages = calloc(count, sizeof(*pages));

	if (!pages)
		return -ENOMEM;
	for (uint64_t i = 0; i < volume->page_count; i++)
		atomic_store_explicit(&pages[i], volume->pages[i], memory_order_relaxed);
	volume_retire(volume, (void *)volume->pages, 0);
	atomic_store_explicit(&volume->pages, pages, memory_order_release);
	volume->page_count = count;
	return 0;
}

/* Nothing that was cut off comes back, and a run that all blocks lay in (which the length alone cuts) does not go on into
 * blocks of which only the format knows where they lie. */
static int forget_between(struct vs_volume *volume, uint64_t before, uint64_t after)
{
	uint64_t whole = atomic_load(&volume->whole);
	int error = 0;

	if (whole && after < before)
		return 0;
	if (whole)
		error = map_set_run(volume, 0, before, whole);
	if (!error && after < before)
		error = map_set_run(volume, after, before - after, 0);
	else if (!error)
		error = map_set_run(volume, before, after - before, 0);
	if (!error)
		atomic_store_explicit(&volume->whole, 0, memory_order_release);
	return error;
}

/* Under the lock. -EBUSY: blocks that would be cut off wait for a commit. */
static int resize(struct vs_volume *volume, uint64_t length)
{
	uint64_t before = map_blocks(volume, volume->length), after = map_blocks(volume, length);
	int error = allocate_end(volume, after);

	if (!error && map_pages(volume, length) > volume->page_count)
		error = grow_pages(volume, map_pages(volume, length));
	if (!error && before != after)
		error = forget_between(volume, before, after);
	for (unsigned i = 0; !error && i <= LAYER_MASK; i++)
		if (volume->layers[i])
			layer_map(volume, volume->layers[i]);
	if (!error)
		atomic_store(&volume->length, length);
	return error;
}

int vs_volume_resize(vs_volume *volume, uint64_t length)
{
	if (length > (uint64_t)INT64_MAX)
		return -EINVAL;
	pthread_mutex_lock(&volume->lock);
	int error = resize(volume, length);
	pthread_mutex_unlock(&volume->lock);
	return error;
}
