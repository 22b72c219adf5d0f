// LAPACK's Fortran symbols, column-major; Debian's OpenBLAS comes without LAPACKE.

#ifndef CKERNELS_LAPACK_H
#define CKERNELS_LAPACK_H

#include <stdbool.h>

#pragma clang assume_nonnull begin

/// Singular values and vectors, divide and conquer; lwork = -1 asks for the work size.
int pk_sgesdd(char job, int m, int n, float *a, int lda, float *s, float *u, int ldu, float *vt, int ldvt, float *work, int lwork,
              int *iwork);
/// Singular values and vectors, QR iteration: slower, converges where sgesdd does not.
int pk_sgesvd(char jobu, char jobvt, int m, int n, float *a, int lda, float *s, float *u, int ldu, float *vt, int ldvt, float *work,
              int lwork);
/// QR factors in Householder form.
int pk_sgeqrf(int m, int n, float *a, int lda, float *tau, float *work, int lwork);
/// The first n columns of Q from its Householder form.
int pk_sorgqr(int m, int n, int k, float *a, int lda, const float *tau, float *work, int lwork);
/// The il-th to iu-th eigenvalues, counted from 1 and rising, and eigenvectors of a symmetric matrix, of which the lower triangle
/// is read; lwork = liwork = -1 asks for the work sizes. Returns info; -1000 when fewer were found.
int pk_dsyevr(int n, double *a, int il, int iu, double *w, double *z, int *isuppz, double *work, int lwork, int *iwork, int liwork);
/// The lower triangle (column-major) of A Aᵀ [m, m] or, with `transposed`, of Aᵀ A [n, n]; A is row-major [m, n].
void pk_dgram(bool transposed, int m, int n, const double *a, double *g);
/// The inverse of a symmetric positive definite matrix in its lower triangle (column-major); nonzero when it is none.
int pk_sposinv(int n, float *a);

/// The same three in double precision.
int pk_dgesdd(char job, int m, int n, double *a, int lda, double *s, double *u, int ldu, double *vt, int ldvt, double *work, int lwork,
              int *iwork);
int pk_dgeqrf(int m, int n, double *a, int lda, double *tau, double *work, int lwork);
int pk_dorgqr(int m, int n, int k, double *a, int lda, const double *tau, double *work, int lwork);
/// C = op(A) op(B) in double precision, column-major.
void pk_dgemm(char ta, char tb, int m, int n, int k, const double *a, int lda, const double *b, int ldb, double *c, int ldc);

#pragma clang assume_nonnull end

#endif
