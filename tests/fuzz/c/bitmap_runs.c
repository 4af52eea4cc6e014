/* The bitmap's form of runs under libFuzzer and ASan: what is taken serialises to the same bytes, and sets no bit past
 * the last page. The first two bytes are the number of pages. */
#include <stdlib.h>
#include <string.h>

#include "bitmap.h"

#define REQUIRE(what) do { if (!(what)) __builtin_trap(); } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return 0;
    size_t pages = (size_t)data[0] << 8 | data[1], words = (pages + 63) / 64, length = size - 2;
    uint64_t *bits = calloc(words ? words : 1, 8);
    uint8_t *source = malloc(length ? length : 1);
    memcpy(source, data + 2, length);
    if (colo_bitmap_get_runs(bits, pages, source, length) < 0) {
        uint8_t *again = malloc(length ? length : 1);
        REQUIRE(!(pages % 64) || !(bits[words - 1] & ~colo_bitmap_tail_mask(pages)));
        /* Runs that touch are one: never longer than what came. */
        REQUIRE(colo_bitmap_put_runs(bits, pages, again, length) >= 0);
        free(again);
    }
    free(source);
    free(bits);
    return 0;
}
