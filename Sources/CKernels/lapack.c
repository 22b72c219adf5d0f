#include "lapack.h"

#include <cblas.h>

extern void sgesdd_(const char *, const int *, const int *, float *, const int *, float *, float *, const int *, float *, const int *,
                    float *, const int *, int *, int *, unsigned long);
extern void sgesvd_(const char *, const char *, const int *, const int *, float *, const int *, float *, float *, const int *, float *,
                    const int *, float *, const int *, int *, unsigned long, unsigned long);
extern void sgeqrf_(const int *, const int *, float *, const int *, float *, float *, const int *, int *);
extern void sorgqr_(const int *, const int *, const int *, float *, const int *, const float *, float *, const int *, int *);
extern void dsyevr_(const char *, const char *, const char *, const int *, double *, const int *, const double *, const double *,
                    const int *, const int *, const double *, int *, double *, double *, const int *, int *, double *, const int *,
                    int *, const int *, int *, unsigned long, unsigned long, unsigned long);
extern void spotrf_(const char *, const int *, float *, const int *, int *, unsigned long);
extern void spotri_(const char *, const int *, float *, const int *, int *, unsigned long);

int pk_sgesdd(char job, int m, int n, float *a, int lda, float *s, float *u, int ldu, float *vt, int ldvt, float *work, int lwork,
              int *iwork) {
  int info = 0;
  sgesdd_(&job, &m, &n, a, &lda, s, u, &ldu, vt, &ldvt, work, &lwork, iwork, &info, 1);
  return info;
}

int pk_sgesvd(char jobu, char jobvt, int m, int n, float *a, int lda, float *s, float *u, int ldu, float *vt, int ldvt, float *work,
              int lwork) {
  int info = 0;
  sgesvd_(&jobu, &jobvt, &m, &n, a, &lda, s, u, &ldu, vt, &ldvt, work, &lwork, &info, 1, 1);
  return info;
}

int pk_sgeqrf(int m, int n, float *a, int lda, float *tau, float *work, int lwork) {
  int info = 0;
  sgeqrf_(&m, &n, a, &lda, tau, work, &lwork, &info);
  return info;
}

int pk_sorgqr(int m, int n, int k, float *a, int lda, const float *tau, float *work, int lwork) {
  int info = 0;
  sorgqr_(&m, &n, &k, a, &lda, tau, work, &lwork, &info);
  return info;
}

extern void dgesdd_(const char *, const int *, const int *, double *, const int *, double *, double *, const int *, double *, const int *,
                    double *, const int *, int *, int *, unsigned long);
extern void dgeqrf_(const int *, const int *, double *, const int *, double *, double *, const int *, int *);
extern void dorgqr_(const int *, const int *, const int *, double *, const int *, const double *, double *, const int *, int *);
extern void dgemm_(const char *, const char *, const int *, const int *, const int *, const double *, const double *, const int *,
                   const double *, const int *, const double *, double *, const int *, unsigned long, unsigned long);

int pk_dgesdd(char job, int m, int n, double *a, int lda, double *s, double *u, int ldu, double *vt, int ldvt, double *work, int lwork,
              int *iwork) {
  int info = 0;
  dgesdd_(&job, &m, &n, a, &lda, s, u, &ldu, vt, &ldvt, work, &lwork, iwork, &info, 1);
  return info;
}

int pk_dgeqrf(int m, int n, double *a, int lda, double *tau, double *work, int lwork) {
  int info = 0;
  dgeqrf_(&m, &n, a, &lda, tau, work, &lwork, &info);
  return info;
}

int pk_dorgqr(int m, int n, int k, double *a, int lda, const double *tau, double *work, int lwork) {
  int info = 0;
  dorgqr_(&m, &n, &k, a, &lda, tau, work, &lwork, &info);
  return info;
}

void pk_dgemm(char ta, char tb, int m, int n, int k, const double *a, int lda, const double *b, int ldb, double *c, int ldc) {
  double one = 1, zero = 0;
  dgemm_(&ta, &tb, &m, &n, &k, &one, a, &lda, b, &ldb, &zero, c, &ldc, 1, 1);
}

int pk_dsyevr(int n, double *a, int il, int iu, double *w, double *z, int *isuppz, double *work, int lwork, int *iwork, int liwork) {
  int info = 0, found = 0;
  double none = 0;
  dsyevr_("V", "I", "L", &n, a, &n, &none, &none, &il, &iu, &none, &found, w, z, &n, isuppz, work, &lwork, iwork, &liwork, &info, 1, 1,
          1);
  return info == 0 && lwork >= 0 && found != iu - il + 1 ? -1000 : info;
}

void pk_dgram(bool transposed, int m, int n, const double *a, double *g) {
  // Read by columns, a row-major A is its transpose.
  if (transposed)
    cblas_dsyrk(CblasColMajor, CblasLower, CblasNoTrans, n, m, 1, a, n, 0, g, n);
  else
    cblas_dsyrk(CblasColMajor, CblasLower, CblasTrans, m, n, 1, a, n, 0, g, m);
}

int pk_sposinv(int n, float *a) {
  int info = 0;
  spotrf_("L", &n, a, &n, &info, 1);
  if (info == 0) spotri_("L", &n, a, &n, &info, 1);
  return info;
}
