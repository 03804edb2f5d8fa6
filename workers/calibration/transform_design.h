// Makes a block's transform: the Karhunen-Loève transform in the coordinates in which equal errors
// do equal harm. For the profile builder.
#pragma once

#include <Eigen/Core>
#include <span>

#include "kvstore/codec/geometry.h"
#include "kvstore/codec/prepared.h"
#include "kvstore/codec/profile.h"
#include "workers/calibration/moments.h"
#include "workers/calibration/sensitivity.h"

namespace tandem::workers {

/// How much an error of a block's channels harms: error' × metric × error, comparable within a
/// plane, 1 a channel on average over the plane. Keys: the mean square of the queries, the same for
/// both channels of a rotated pair, since relative positions mix them. Values: the Gram matrix of
/// the output projection, heads apart. `is_key`: which of the two sensitivities counts.
Eigen::MatrixXd BlockMetric(const Sensitivity& sensitivity, const kvstore::Rope& rope,
                            const kvstore::codec::PlaneInfo& plane, size_t layer, bool is_key,
                            uint32_t first_channel, uint32_t n_channels);

/// The block whose components are uncorrelated, the strongest first, and whose unit steps all do
/// the same harm. Only channels of the same `mixed` (all, a head's, 1) are mixed with each other.
/// REQUIRES: moments.count() > 0, metric of its size, mixed > 0.
kvstore::codec::Block DesignBlock(const Moments& moments, const Eigen::MatrixXd& metric,
                                  uint32_t first_channel, uint32_t mixed);

/// From values minus mean to components in units of the step 1: the inverse of scale × basis.
Eigen::MatrixXd ForwardMatrix(const kvstore::codec::Block& block);

}  // namespace tandem::workers
