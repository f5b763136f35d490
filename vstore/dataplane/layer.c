/*
 * layer.c - one file under a volume: its mapping, and which of its pages a copy may be taken from.
 *
 * A system call for every cached 4 KiB read costs more than the copy itself. So a regular file is also mapped, and a bit
 * a page says that an earlier read found the page in memory: then memcpy() does. Should the kernel have dropped the page
 * since, the copy takes a fault and waits for the disk, which is slow but right; io.c watches for such faults and forgets
 * all bits when it sees one. A file cut short by others raises SIGBUS, which fault.c turns into an ordinary read.
 */
#define _GNU_SOURCE
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { WINDOW_PAGES = 512, CHUNK_PAGES = 1 << 15, MOST_CHUNKS = 4096, SLACK = 256 << 20, SLOW_TIMES = 16 };

static uint64_t words_for(uint64_t bits)
{
	return bits / 64 + 1;
}

static void mapping_free(struct mapping *mapping)
{
	if (mapping && mapping->bytes)
		munmap(mapping->bytes, mapping->length);
	if (mapping && mapping->resident)
		munmap((void *)mapping->resident, mapping->resident_length);
	free(mapping);
}

static void *map_lazily(int fd, uint64_t length, int protection)
{
	int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE : MAP_SHARED | MAP_NORESERVE;
	void *bytes = mmap(NULL, length, protection, flags, fd, 0);

	if (bytes == MAP_FAILED)
		return NULL;
	madvise(bytes, length, MADV_DONTDUMP);
	return bytes;
}

static struct mapping *new_mapping(const struct layer *layer, uint64_t length, uint64_t file_end)
{
	/* writing through a mapping is for files that live in memory: on a disk's file the first touch of a page may wait */
	bool writable = layer->flags & (VS_FILE_INSTANT | VS_FILE_MEMORY) && !(layer->flags & VS_FILE_READ_ONLY);
	uint64_t pages = length >> PAGE_BITS, scanned = words_for(pages / WINDOW_PAGES);
	uint64_t words = scanned + words_for(pages / CHUNK_PAGES);
	struct mapping *mapping = calloc(1, sizeof(*mapping) + words * sizeof(uint64_t));

	if (!mapping)
		return NULL;
	mapping->length = length;
	mapping->file_end = file_end;
	mapping->touched = mapping->scanned + scanned;
	mapping->resident_length = words_for(pages) * sizeof(uint64_t);
	mapping->resident = map_lazily(-1, mapping->resident_length, PROT_READ | PROT_WRITE);
	mapping->bytes = map_lazily(layer->fd, length, writable ? PROT_READ | PROT_WRITE : PROT_READ);
	if (mapping->bytes && mapping->resident)
		return mapping;
	mapping_free(mapping);
	return NULL;
}

/* The bytes of the file that may be mapped, in whole pages; 0: none may. */
static uint64_t mappable(const struct layer *layer)
{
	bool memory = layer->flags & VS_FILE_MEMORY;
	struct stat status;

	if (layer->flags & (VS_FILE_NULL | VS_FILE_DIRECT | VS_FILE_BLOCK_DEVICE) || fstat(layer->fd, &status))
		return 0;
	if (memory)
		return (uint64_t)status.st_size;
	/* mincore() tells only owners the truth about a file; others hear that everything is resident */
	if (status.st_uid != geteuid() && geteuid())
		return 0;
	return (uint64_t)status.st_size & ~(uint64_t)((1u << PAGE_BITS) - 1);
}

static void replace_mapping(struct vs_volume *volume, struct layer *layer, uint64_t file_end)
{
	bool grows = !(layer->flags & (VS_FILE_MEMORY | VS_FILE_READ_ONLY));
	uint64_t length = file_end, disk = atomic_load(&volume->length);
	struct mapping *old = atomic_load(&layer->mapping), *mapping = NULL;

	if (grows && file_end < UINT64_MAX / 4 && disk < UINT64_MAX / 4) {
		length += file_end / 4;
		length = ((length > disk + disk / 8 ? length : disk + disk / 8) + SLACK) & ~(uint64_t)(SLACK - 1);
		mapping = new_mapping(layer, length, file_end);
	}
	if (!mapping)
		mapping = new_mapping(layer, file_end, file_end);
	if (!mapping)
		return;
	atomic_store(&layer->mapping, mapping);
	if (old) {
		volume_retire(volume, old->bytes, old->length);
		volume_retire(volume, (void *)old->resident, old->resident_length);
		volume_retire(volume, old, 0);
	}
}

void layer_map(struct vs_volume *volume, struct layer *layer)
{
	const struct mapping *old = atomic_load(&layer->mapping);
	uint64_t file_end = volume->mapped ? mappable(layer) : 0;

	if (file_end && (!old || atomic_load(&old->file_end) != file_end))
		replace_mapping(volume, layer, file_end);
}

void layer_grown(struct vs_volume *volume, struct layer *layer)
{
	struct mapping *old = atomic_load(&layer->mapping);
	uint64_t file_end = old ? mappable(layer) : 0;

	atomic_store_explicit(&layer->grows, true, memory_order_relaxed);
	if (file_end > (old ? old->length : UINT64_MAX))
		replace_mapping(volume, layer, file_end);
	else if (file_end)
		atomic_store_explicit(&old->file_end, file_end, memory_order_relaxed);
}

uint8_t *layer_resident(const struct layer *layer, uint64_t offset, uint64_t length, bool write)
{
	const struct mapping *mapping = atomic_load_explicit(&layer->mapping, memory_order_acquire);

	if (!mapping || length > mapping->length || offset > mapping->length - length)
		return NULL;
	if (layer->flags & VS_FILE_MEMORY)
		return mapping->bytes + offset;
	/* what is written beyond the end of a file, though to a page of it, does not become part of it */
	if (write && offset + length > atomic_load_explicit(&mapping->file_end, memory_order_relaxed))
		return NULL;
	for (uint64_t page = offset >> PAGE_BITS; page <= (offset + length - 1) >> PAGE_BITS; page++)
		if (!(atomic_load_explicit(&mapping->resident[page / 64], memory_order_relaxed) >> (page % 64) & 1))
			return NULL;
	return mapping->bytes + offset;
}

/* All that is known of any page goes, and the memory that it took. */
static void forget_all(struct mapping *mapping)
{
	uint64_t pages = mapping->length >> PAGE_BITS;

	atomic_store(&mapping->chunks, 0);
	for (uint64_t i = 0; i < words_for(pages / CHUNK_PAGES); i++)
		atomic_store_explicit(&mapping->touched[i], 0, memory_order_relaxed);
	madvise((void *)mapping->resident, mapping->resident_length, MADV_DONTNEED);
	/* last: a window that was asked about before is asked about again */
	for (uint64_t i = 0; i < words_for(pages / WINDOW_PAGES); i++)
		atomic_store(&mapping->scanned[i], 0);
}

/* Keeps the bits of a huge file that is read all over from taking more memory than those of half a tebibyte. */
static void touch(struct mapping *mapping, uint64_t chunk)
{
	uint64_t bit = 1ull << (chunk % 64);

	if (LIKELY(atomic_load_explicit(&mapping->touched[chunk / 64], memory_order_relaxed) & bit))
		return;
	if (!(atomic_fetch_or(&mapping->touched[chunk / 64], bit) & bit) &&
	    atomic_fetch_add(&mapping->chunks, 1) >= MOST_CHUNKS)
		forget_all(mapping);
}

static void mark(struct mapping *mapping, uint64_t first, uint64_t end, bool set)
{
	for (uint64_t page = first; page < end; page++) {
		uint64_t bit = 1ull << (page % 64);
		if (set) {
			touch(mapping, page / CHUNK_PAGES);
			atomic_fetch_or_explicit(&mapping->resident[page / 64], bit, memory_order_relaxed);
		} else if (atomic_load_explicit(&mapping->resident[page / 64], memory_order_relaxed) & bit) {
			atomic_fetch_and_explicit(&mapping->resident[page / 64], ~bit, memory_order_relaxed);
		}
	}
}

/*
 * A look through the mapping of a tmpfs file would allocate the holes it meets, so there only pages that are known to be
 * data may be marked. mincore() knows; each window of pages is asked about once, since our own writes mark what they
 * allocate. (lseek(SEEK_HOLE) knows too, but walks the whole file to say so.) On a disk, one read that did not wait for it
 * has company: many others then need no call of their own. A window of a tmpfs file without holes is mapped at once, for
 * much less than the faults of its pages one by one as each is first written to.
 */
static void scan_window(const struct layer *layer, struct mapping *mapping, uint64_t page)
{
	unsigned char resident[WINDOW_PAGES];
	uint64_t window = page / WINDOW_PAGES, first = window * WINDOW_PAGES, bit = 1ull << (window % 64);
	uint64_t pages = mapping->length >> PAGE_BITS;
	uint64_t count = pages - first < WINDOW_PAGES ? pages - first : WINDOW_PAGES;

	if (atomic_fetch_or(&mapping->scanned[window / 64], bit) & bit)
		return;
	if (mincore(mapping->bytes + (first << PAGE_BITS), count << PAGE_BITS, resident))
		return;
	uint64_t found = 0;
	for (uint64_t i = 0; i < count; i++) {
		if (!(resident[i] & 1))
			continue;
		mark(mapping, first + i, first + i + 1, true);
		found++;
	}
	if (found == count && layer->flags & VS_FILE_INSTANT)
		madvise(mapping->bytes + (first << PAGE_BITS), count << PAGE_BITS, MADV_POPULATE_READ);
}

/* The pages that a range of the file touches, as far as they are mapped. NULL: none of them has a bit. */
static struct mapping *pages_of(const struct layer *layer, uint64_t offset, uint64_t length, uint64_t *first,
				uint64_t *end)
{
	struct mapping *mapping = atomic_load_explicit(&layer->mapping, memory_order_acquire);

	if (!mapping || (layer->flags & VS_FILE_MEMORY) || !length)
		return NULL;
	*first = offset >> PAGE_BITS;
	*end = (offset + length + (1u << PAGE_BITS) - 1) >> PAGE_BITS;
	if (*end > mapping->length >> PAGE_BITS)
		*end = mapping->length >> PAGE_BITS;
	return *first < *end ? mapping : NULL;
}

void layer_note_resident(const struct layer *layer, uint64_t offset, uint64_t length)
{
	uint64_t first, end;
	struct mapping *mapping = pages_of(layer, offset, length, &first, &end);

	if (mapping)
		mark(mapping, first, end, true);
}

void layer_note_found(const struct layer *layer, uint64_t offset, uint64_t length)
{
	uint64_t first, end;
	struct mapping *mapping = pages_of(layer, offset, length, &first, &end);

	if (mapping && !(layer->flags & VS_FILE_INSTANT))
		mark(mapping, first, end, true);
	for (uint64_t page = first; mapping && page < end; page += WINDOW_PAGES - page % WINDOW_PAGES)
		scan_window(layer, mapping, page);
}

void layer_forget_resident(const struct layer *layer, uint64_t offset, uint64_t length)
{
	uint64_t first, end;
	struct mapping *mapping = pages_of(layer, offset, length, &first, &end);

	if (mapping && !first && end == mapping->length >> PAGE_BITS)
		forget_all(mapping);
	else if (mapping)
		mark(mapping, first, end, false);
}

/* On other file systems a server that is gone might keep the call. */
bool layer_is_quick(const struct layer *layer, uint64_t now)
{
	return layer->local && now >= atomic_load_explicit(&layer->slow_until, memory_order_relaxed);
}

void layer_was_slow(struct layer *layer, uint64_t now, uint64_t took)
{
	atomic_store_explicit(&layer->slow_until, now + SLOW_TIMES * took, memory_order_relaxed);
}

/*
 * What to answer to a flush that ended with `result`. The kernel tells once that it could not write back what a file had
 * in memory; then the pages count as clean, and the next flush succeeds. So a failure is kept for as long as the layer is
 * open: the writes before it are gone, and no flush after it may be called good. With O_DIRECT nothing waits in memory.
 */
int layer_synced(struct layer *layer, int result)
{
	if (UNLIKELY(result) && !(layer->flags & VS_FILE_DIRECT))
		atomic_store(&layer->lost, result);
	int lost = atomic_load_explicit(&layer->lost, memory_order_relaxed);
	return result ? result : lost;
}

void layer_free(struct layer *layer)
{
	if (!layer)
		return;
	mapping_free(atomic_load(&layer->mapping));
	if (layer->fd >= 0)
		close(layer->fd);
	free(layer);
}
